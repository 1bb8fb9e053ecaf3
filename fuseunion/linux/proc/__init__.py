"""What /proc says of processes: which there are, what they hold, what they lock."""
