"""The engines side by side: one behaviour, or the known difference; one upper for all of them."""
