"""What makes a directory of the lowers movable: a copy of all of it, or a mark that leads back."""
