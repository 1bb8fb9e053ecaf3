"""From the lowers to the upper, and what is kept of where a copy came from."""
