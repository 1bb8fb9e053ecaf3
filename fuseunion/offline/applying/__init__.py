"""Pushing an upper down into its lower, so that it can be taken back."""
