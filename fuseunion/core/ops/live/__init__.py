"""What is asked of a union while it is used, and told to it, beside the requests of its users."""
