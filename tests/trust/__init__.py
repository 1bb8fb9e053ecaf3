"""Nobody gets at what is not theirs, whatever the layers hold: hostile users, on real mounts."""
