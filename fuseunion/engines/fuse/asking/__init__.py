"""What is asked of a daemon, and how: the state of its mount, and to write out."""
