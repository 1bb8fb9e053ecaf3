"""The tests: `support` is shared, every other directory is one kind of test (see each `__init__`)."""
