"""What a request may have to wait for, and how nobody else waits with it."""
