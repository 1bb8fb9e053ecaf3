"""Images as layers."""
