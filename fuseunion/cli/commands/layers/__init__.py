"""Commands about layers that nobody has mounted: what is in an upper, and what can be made of it."""
