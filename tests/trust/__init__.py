"""What other users, broken layers and faults may not bring about."""
