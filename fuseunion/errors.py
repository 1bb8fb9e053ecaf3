"""What a person is told when fuseunion cannot do what was asked.

Everything that ends a command is a UserError: one line that names what was wrong, which value it was and what to do,
and one documented exit code (docs/exit-codes.md). Inside a running mount there are no UserErrors: there a failure is
an errno that the kernel hands to the program that made the system call.
"""

from enum import IntEnum


def one_line(message: str) -> str:
    """A message as one line that a terminal shows and does not obey.

    What somebody put into a file name stays visible: a line break is shown as \\n, a byte that is no UTF-8 as \\xff.
    """
    return "".join(each if each.isprintable() else _escaped(each) for each in message.rstrip("\n"))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode has made it of a byte
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


class ExitCode(IntEnum):
    """The program's exit status; the numbers are a contract with scripts."""

    OK = 0
    FAILURE = 1
    """A mount or another system call failed."""
    USAGE = 2
    """The command line cannot be understood."""
    LAYERS = 3
    """The given paths or layers are refused."""
    BUSY = 4
    """A directory or mount is in use."""
    UNAVAILABLE = 5
    """FUSE, or the engine that was asked for, is missing here."""


class UserError(Exception):
    """Ends the command with one line on stderr.

    Args:
        message: one line: what, which value, what to do about it.
        exit_code: the exit status of the program.
    """

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
