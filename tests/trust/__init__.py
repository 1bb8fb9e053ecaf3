"""Real mounts: one behaviour per test, as root, as an ordinary user and in a user namespace."""
