"""The directory in which the mounts of a user can be found, and what they say there of themselves."""
