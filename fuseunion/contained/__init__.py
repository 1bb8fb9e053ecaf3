"""Commands that run in a union: namespaces, the view of the machine from within, and the way from start to end."""
