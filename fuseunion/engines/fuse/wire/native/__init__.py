"""The extension module that reads /dev/fuse, in C."""
