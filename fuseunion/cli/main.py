"""The command table, and the one place where a UserError becomes a line on stderr and an exit code.

Without a command name the arguments are those of a mount. A lower directory that has the name of a command is written
`./umount`.
"""

import importlib
import os
import sys

from fuseunion.errors import ExitCode, UserError, one_line

COMMANDS = {
    "add-lower": "fuseunion.cli.commands.live.lowers.add_lower",
    "apply": "fuseunion.cli.commands.layers.apply",
    "check": "fuseunion.cli.commands.layers.upkeep.check",
    "chown": "fuseunion.cli.commands.chown",
    "commit": "fuseunion.cli.commands.layers.commit",
    "completion": "fuseunion.cli.completion.command",
    "convert": "fuseunion.cli.commands.layers.upkeep.convert",
    "diff": "fuseunion.cli.commands.layers.diff",
    "doctor": "fuseunion.cli.commands.doctor",
    "exec": "fuseunion.cli.commands.exec",
    "export": "fuseunion.cli.commands.layers.export",
    "flatten": "fuseunion.cli.commands.layers.upkeep.flatten",
    "image": "fuseunion.cli.commands.image",
    "import": "fuseunion.cli.commands.layers.import_",
    "log": "fuseunion.cli.commands.live.log",
    "promote": "fuseunion.cli.commands.promote",
    "refresh": "fuseunion.cli.commands.live.lowers.refresh",
    "restore": "fuseunion.cli.commands.layers.upkeep.restore",
    "snapshot": "fuseunion.cli.commands.layers.upkeep.snapshot",
    "snapshots": "fuseunion.cli.commands.layers.upkeep.snapshots",
    "status": "fuseunion.cli.commands.live.status",
    "sync": "fuseunion.cli.commands.sync",
    "top": "fuseunion.cli.commands.live.top.command",
    "which": "fuseunion.cli.commands.live.which",
    "umount": "fuseunion.cli.commands.umount",
    "vacuum": "fuseunion.cli.commands.layers.upkeep.vacuum",
}
"""Name and module; each has main(arguments: list[str]) -> int and is imported when it is asked for."""


def run(argv: list[str]) -> int:
    """Run one command.

    Args:
        argv: with the program's name first.
    Returns:
        The exit status (errors.ExitCode).
    Raises:
        BrokenPipeError: whoever reads stdout has read enough.
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

        try:
            return mount.main(arguments, program)
        except UserError as error:
            raise _unknown_command(arguments, error) or error from None
    except UserError as error:
        say(error.message)
        return error.exit_code
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _has_read_enough():
            raise  # as `head` does; nothing is wrong
        say(_of_system(error))
        return ExitCode.FAILURE
    except KeyboardInterrupt:
        # The shell's convention for a program ended by SIGINT.
        return 130


def _has_read_enough() -> bool:
    """Whether nobody reads what is written to stdout any more."""
    import select

    poll = select.poll()
    poll.register(1, 0)
    return bool(poll.poll(0))


def _of_system(error: OSError) -> str:
    if error.filename is not None:
        return f"'{os.fsdecode(error.filename)}': {error.strerror}"
    if isinstance(error, FileNotFoundError):
        try:
            os.getcwd()
        except FileNotFoundError:
            return "the working directory does not exist any more; change to another"
    return error.strerror or str(error)


def _unknown_command(arguments: list[str], error: UserError) -> UserError | None:
    """The error of a mount whose first directory is no directory, but like the name of a command; else None."""
    if not arguments or error.exit_code not in (ExitCode.USAGE, ExitCode.LAYERS):
        return None
    first = arguments[0]
    if not first or "/" in first or os.path.lexists(first):
        return None
    from fuseunion.cli import near

    remedy = near.command(first, COMMANDS)
    if remedy is None and len(arguments) == 1 and not first.startswith("-"):
        remedy = f"the commands are {', '.join(COMMANDS)}; a mount is: fuseunion LOWER[:LOWER...] UPPER MERGED"
    return UserError(f"unknown command '{first}'; {remedy}") if remedy else None


def say(message: str) -> None:
    """Write one line of the program to stderr."""
    sys.stderr.write(f"fuseunion: {one_line(message)}\n")
