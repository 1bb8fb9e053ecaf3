"""Commands that run in a union (`fuseunion exec`)."""
