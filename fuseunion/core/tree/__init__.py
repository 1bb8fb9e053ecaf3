"""The merged tree: inodes, and what each name shows."""
