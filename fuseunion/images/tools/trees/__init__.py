"""Whole trees, into images and out of them."""
