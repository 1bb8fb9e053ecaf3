"""Looking at a live mount."""
