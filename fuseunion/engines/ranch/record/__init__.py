"""What a ranch keeps beside UPPER, and the marks that lead there."""
