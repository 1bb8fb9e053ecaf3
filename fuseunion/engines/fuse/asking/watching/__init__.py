"""What is counted and noted of a mount's requests, for those who want to see how it is doing."""
