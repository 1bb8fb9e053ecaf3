"""`fuseunion completion SHELL`: print a script with which the shell completes fuseunion's command line."""

from __future__ import annotations

import importlib
import sys

from fuseunion.cli.parser import CommandParser
from fuseunion.errors import ExitCode, UserError

SHELLS = ("bash", "zsh", "fish")

HELP = """\
Usage: fuseunion completion bash | zsh | fish

Prints a script that makes TAB complete commands, options, their values and the words of -o in this shell.

Options:
  -h, --help   print this help

Examples:
  fuseunion completion bash >~/.local/share/bash-completion/completions/fuseunion
  fuseunion completion zsh >~/.zfunc/_fuseunion         (with fpath+=~/.zfunc before compinit in ~/.zshrc)
  fuseunion completion fish >~/.config/fish/completions/fuseunion.fish
"""


def main(arguments: list[str]) -> int:
    """Print the script.

    Raises:
        UserError: USAGE.
    """
    asked = CommandParser("completion", HELP).parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) != 1 or asked.operands[0] not in SHELLS:
        raise UserError(f"give one of the shells {', '.join(SHELLS)}: fuseunion completion bash")
    (shell,) = asked.operands
    from fuseunion.cli.completion import spec

    sys.stdout.write(importlib.import_module(f"fuseunion.cli.completion.{shell}").script(spec.commands()))
    return ExitCode.OK
