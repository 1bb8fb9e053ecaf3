"""Marks in the layers: whiteouts, opaque directories, origins, the link index."""
