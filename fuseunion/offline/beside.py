"""What a command keeps beside a directory, in `.NAME.fuseunion-WHAT`: a directory that is closed to others (mode 0700),
and is believed only where it is the user's own (linux/owned.py).
"""

from __future__ import annotations

import os

from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import owned


def place(directory: str, what: str) -> str:
    """The path of what is kept beside a directory.

    Args:
        what: is kept.
    """
    parent, name = os.path.split(os.path.realpath(directory))
    return os.path.join(parent, f".{name}.fuseunion-{what}")


def found(path: str) -> int | None:
    """An O_RDONLY descriptor of a place, which the caller closes; None where there is none.

    Raises:
        UserError: LAYERS, where it is somebody else's, or no directory.
    """
    try:
        return owned.open_directory(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"'{path}' cannot be used: {error.strerror}; it must be yours alone", ExitCode.LAYERS) from None


def make(path: str) -> None:
    """Make a place.

    Raises:
        UserError: LAYERS.
    """
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        raise UserError(f"'{path}' cannot be made: {error.strerror}", ExitCode.LAYERS) from None


def sync(fd: int) -> None:
    """Put on disk what names are in a place.

    Raises:
        OSError: EIO.
    """
    readable = os.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
    try:
        os.fsync(readable)
    finally:
        os.close(readable)
