"""Requests that come through pyfuse3, and how it is imported."""
