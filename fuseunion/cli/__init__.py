"""The command line: the mount, the commands that have a name, and nothing that anything else imports."""
