"""What changes the tree."""
