"""Requests that come through pyfuse3."""
