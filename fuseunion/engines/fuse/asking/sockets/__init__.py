"""The sockets of a daemon, at which it is asked for its status, for a pause, and for what takes messages."""
