"""What a copy of an object gets: its data, and everything else."""
