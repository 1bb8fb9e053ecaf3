"""Layers as data, not mounted."""
