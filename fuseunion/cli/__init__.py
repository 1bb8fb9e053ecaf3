"""The command line: one file per command, nothing that anything else imports."""
