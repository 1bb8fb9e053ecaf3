"""What works here."""
