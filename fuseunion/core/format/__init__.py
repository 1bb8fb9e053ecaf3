"""What stands on disk: names and numbers."""
