"""The tree of links."""
