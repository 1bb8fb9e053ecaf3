"""Layers that are no directories of the user: memory, and images."""
