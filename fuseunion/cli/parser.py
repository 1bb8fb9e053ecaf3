"""The arguments of every command but the mount: options anywhere, `--` before names that begin with a dash, `-h`.

argparse does the reading. What it lacks is put around it, so that all commands behave alike: the hand-written help is
printed, a mistake is one line and exit status 2 (UserError), options are never abbreviated, and operands and options
may be mixed in every version of Python.
"""

from __future__ import annotations

import argparse

from fuseunion.errors import UserError


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Needs no width: nothing is printed with it. To find one argparse would import shutil at each start."""
    return argparse.HelpFormatter(prog, width=80)


class Arguments(argparse.Namespace):
    """What was given: each option under its long name.

    Attributes:
        operands: in their order.
    """

    operands: list[str]


class CommandParser:
    """The options of one command.

    Args:
        command: its name, for messages.
        text: what -h prints.

    Attributes:
        options: every spelling of every option.
    """

    def __init__(self, command: str, text: str) -> None:
        self._text = text
        self._remedy = f"see fuseunion {command} --help"
        self._parser = argparse.ArgumentParser(
            add_help=False, allow_abbrev=False, exit_on_error=False, formatter_class=_formatter
        )
        self._with_value: set[str] = set()
        self.options: set[str] = set()
        self.flag("-h", "--help")

    def flag(self, *names: str) -> None:
        """Add an option without a value."""
        self.options.update(names)
        self._parser.add_argument(*names, action="store_true")

    def value(self, *names: str) -> None:
        """Add an option with a value, None where it is not given; the last one wins."""
        self._parser.add_argument(*names)
        self._add_value(*names)

    def values(self, name: str) -> None:
        """Add an option that may be given several times, as the list of its values."""
        self._parser.add_argument(name, action="append", default=[])
        self._add_value(name)

    def _add_value(self, *names: str) -> None:
        self._with_value.update(names)
        self.options.update(names)

    def parse(self, arguments: list[str]) -> Arguments | None:
        """Read the arguments of a command.

        Returns:
            What was given; None when help was asked for, and has been printed.
        Raises:
            UserError: USAGE: an unknown option, a value that is missing or not wanted.
        """
        known = self.parse_known(arguments)
        if known is None:
            return None
        given, rest = known
        given.operands = self.operands(rest)
        return given

    def parse_known(self, arguments: list[str]) -> tuple[Arguments, list[str]] | None:
        """Read the arguments of a command that hands on what it does not know.

        Returns:
            What was given and what is left, with the `--` if there was one; None when help was asked for.
        Raises:
            UserError: USAGE: a value that is missing or not wanted.
        """
        end = arguments.index("--") if "--" in arguments else len(arguments)
        try:
            # Operands are not declared, because argparse wants them in one piece.
            given, rest = self._parser.parse_known_args(arguments[:end], Arguments())
        except argparse.ArgumentError as error:
            name = str(error.argument_name).rpartition("/")[2]
            wrong = "needs a value" if name in self._with_value else "takes no value"
            raise UserError(f"{name} {wrong}; {self._remedy}") from None
        if given.help:
            print(self._text, end="")
            return None
        return given, [*rest, *arguments[end:]]

    def operands(self, rest: list[str]) -> list[str]:
        """The operands in what `parse_known` has left.

        Raises:
            UserError: USAGE: there is an option among it.
        """
        end = rest.index("--") if "--" in rest else len(rest)
        for argument in rest[:end]:
            if argument.startswith("-") and argument != "-":
                from fuseunion.cli import near

                raise UserError(f"unknown option '{argument}'; {near.option(argument, self.options) or self._remedy}")
        return rest[:end] + rest[end + 1 :]
