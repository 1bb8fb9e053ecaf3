"""What the kernel offers and tells: system calls, mounts, processes."""
