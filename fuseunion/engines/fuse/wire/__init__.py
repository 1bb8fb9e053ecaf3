"""Requests that are read from /dev/fuse directly, beneath pyfuse3: fewer of them, and each answered at less cost."""
