"""What shows a mount while it is used, and tells it something."""
