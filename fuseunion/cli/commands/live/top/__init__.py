"""`fuseunion top`: a mount at work, in a terminal."""
