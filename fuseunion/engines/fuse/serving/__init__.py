"""Answers to requests of the kernel."""
