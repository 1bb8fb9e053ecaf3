"""READDIRPLUS: the names of directories with their entries."""
