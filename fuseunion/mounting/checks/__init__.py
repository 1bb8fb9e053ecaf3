"""What keeps a mount from being made."""
