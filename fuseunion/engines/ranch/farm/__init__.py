"""The tree of links: how it is built, and how single objects of it are made, read and compared."""
