"""One layer on disk, and how its objects are reached."""
