"""Points in time of an upper: snapshots of it, and going back to one."""
