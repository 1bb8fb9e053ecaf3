"""Attributes of merged objects: what is shown, and what changes it."""
