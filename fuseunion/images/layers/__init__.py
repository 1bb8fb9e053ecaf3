"""Images in use: mounted where nobody sees it, locked, and put in order at the end."""
