"""What the kernel offers and tells: system calls, namespaces, mounts, processes."""
