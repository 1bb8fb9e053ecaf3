"""What a ranch remembers."""
