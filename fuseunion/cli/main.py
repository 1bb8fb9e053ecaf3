"""The command table, and the one place where a UserError becomes a line on stderr and an exit code.

Without a command name the arguments are those of a mount. A lower directory that has the name of a command is written
`./umount`.
"""

import importlib
import os
import sys

from fuseunion.errors import ExitCode, UserError

COMMANDS = {
    "chown": "fuseunion.cli.commands.chown",
    "doctor": "fuseunion.cli.commands.doctor",
    "exec": "fuseunion.cli.commands.exec",
    "promote": "fuseunion.cli.commands.promote",
    "sync": "fuseunion.cli.commands.sync",
    "umount": "fuseunion.cli.commands.umount",
}
"""Name and module; each has main(arguments: list[str]) -> int and is imported when it is asked for."""


def run(argv: list[str]) -> int:
    """Run one command.

    Args:
        argv: with the program's name first.
    Returns:
        The exit status (errors.ExitCode).
    """
    program, *arguments = argv
    try:
        if arguments and arguments[0] in COMMANDS:
            name, *rest = arguments
            # After `--` exec has the arguments of another command, which may be empty.
            if "" in (rest[: rest.index("--")] if name == "exec" and "--" in rest else rest):
                # Taken as a path it would be the working directory.
                number = rest.index("") + 1
                raise UserError(f"argument {number} of 'fuseunion {name}' is empty; is a variable not set?")
            return int(importlib.import_module(COMMANDS[name]).main(rest))
        from fuseunion.cli import mount

        return mount.main(arguments, program)
    except UserError as error:
        _say(error.message)
        return error.exit_code
    except OSError as error:
        where = f"'{os.fsdecode(error.filename)}': " if error.filename is not None else ""
        _say(f"{where}{error.strerror or error}")
        return ExitCode.FAILURE
    except KeyboardInterrupt:
        # The shell's convention for a program ended by SIGINT.
        return 130


def _say(message: str) -> None:
    line = " ".join(message.splitlines())
    sys.stderr.write(f"fuseunion: {line}\n".encode("utf-8", "backslashreplace").decode())
