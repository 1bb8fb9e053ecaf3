"""Images in use: mounted where nobody sees it, locked, and put in order at the end."""

started: set[int] = set()
"""The programs that this process has started and not seen to end, for who waits for its children."""
