"""From the tree of links back into UPPER."""
