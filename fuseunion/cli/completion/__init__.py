"""Shell completion, made of the help texts: what a command prints with --help is what TAB offers.

spec.py      the help texts, read
bash.py, zsh.py, fish.py      a script for each shell
"""
