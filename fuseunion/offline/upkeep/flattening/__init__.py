"""Bringing an upper into a form that others read."""
