"""READ, WRITE and what else is done with the data of files, and the descriptors for it."""
