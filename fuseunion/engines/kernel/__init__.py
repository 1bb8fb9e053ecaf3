"""The kernel's overlayfs."""
