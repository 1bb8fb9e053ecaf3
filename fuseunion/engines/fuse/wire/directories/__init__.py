"""READDIRPLUS: the names of directories with their entries; and directories that need no Python."""
