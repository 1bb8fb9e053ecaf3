"""One object on disk: what is done to it without following a link, whether it is the same, what its mode forbids."""
