"""The commands that have a name; each module has `main(arguments) -> int` and its HELP."""
