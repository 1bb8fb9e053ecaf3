"""Work on layers that nothing has mounted."""
