"""The union itself: synchronous, without FUSE and without trio; at run time it raises only OSError."""
