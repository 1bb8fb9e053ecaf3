"""The FUSE engine: pyfuse3 and trio are imported here and nowhere else."""
