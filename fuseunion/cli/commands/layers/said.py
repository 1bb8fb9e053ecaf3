"""What the commands about layers say in one way: errors, sizes, types."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from fuseunion.core.format.xattr_names import MalformedError
from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting import log
from fuseunion.mounting.options.values import parse_lowers
from fuseunion.offline.layers.opening import View
from fuseunion.offline.layers.reader import IncompleteError

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}

_UNITS = ("KiB", "MiB", "GiB", "TiB")


@contextmanager
def reading(upper: str, lowers: Sequence[str] = (), *, into: str | None = None) -> Iterator[None]:
    """Turn what goes wrong with one object of an upper into one line that names it.

    Args:
        lowers: below it, topmost first; what is in none of these directories is said to be in the upper.
        into: what is written meanwhile, where that is not the upper.

    Raises:
        UserError: LAYERS, FAILURE.
    """
    try:
        yield
    except IncompleteError as error:
        raise UserError(
            f"'{join(upper, error.path)}' {error.what}; give the lower directories with --lower", ExitCode.LAYERS
        ) from None
    except MalformedError as error:
        raise UserError(
            f"the marks on '{join(upper, error.filename)}' cannot be understood, or are not believed "
            f"({error.strerror}); remove them",
            ExitCode.LAYERS,
        ) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        if into is not None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            # Whatever was read at that moment, it is not what lacks space.
            raise UserError(f"'{into}' cannot be written: {error.strerror}", ExitCode.FAILURE) from None
        hint = "; run it as root, or in the user namespace of its owner" if error.errno == errno.EACCES else ""
        path = error.filename
        name = f"'{join(_holder(path, upper, lowers), path)}': " if isinstance(path, bytes) else _named(error)
        raise UserError(f"{name}{error.strerror or error}{hint}", ExitCode.FAILURE) from None


@contextmanager
def to_a_pipe() -> Iterator[None]:
    """Say no more when the reader of the standard output has gone, as `head` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _holder(path: bytes, upper: str, lowers: Sequence[str]) -> str:
    """Which directory shows what is at a path."""
    return next((layer for layer in (upper, *lowers) if os.path.lexists(join(layer, path))), upper)


def _named(error: OSError) -> str:
    return f"'{error.filename}': " if isinstance(error.filename, str) else ""


def join(directory: str, path: bytes | None) -> str:
    """A path beneath a directory, for a message."""
    return os.path.join(directory, os.fsdecode(path)) if path else directory


def lowers_of(given: Sequence[str]) -> list[str]:
    """The directories of all --lower, topmost first.

    Raises:
        UserError: USAGE, for an empty name.
    """
    return [lower for text in given for lower in parse_lowers(text)]


def tell_notes(view: View) -> None:
    """Warn of what was not as usual."""
    for line in view.notes:
        log.tell(f"warning: {line}")


def refuse_shown(lower: str) -> None:
    """Refuse a directory that a mount shows, as far as mounts of this user are seen.

    Raises:
        UserError: BUSY.
    """
    from fuseunion.engines import registry

    for engine in registry.every():
        for status in engine.statuses():
            for path in status.lowers:
                if os.path.exists(path) and os.path.exists(lower) and os.path.samefile(path, lower):
                    raise UserError(
                        f"lower directory '{lower}' is shown by the mount at '{status.merged}'; unmount it first",
                        ExitCode.BUSY,
                    )


def tell_lost(lost: Mapping[str, int]) -> None:
    """Warn of what could not be kept.

    Args:
        lost: what, with how many objects it was (Builder.lost).
    """
    for what, count in sorted(lost.items()):
        log.tell(f"warning: {what} could not be kept, of {count} {'object' if count == 1 else 'objects'}")


def type_of(mode: int) -> str:
    """The type of an object in words."""
    return _TYPES.get(stat.S_IFMT(mode), "object")


def size_of(size: int) -> str:
    """A number of bytes for people."""
    amount = float(size)
    if amount < 1024:
        return f"{size} B"
    for unit in _UNITS:
        amount /= 1024
        if amount < 1024 or unit == _UNITS[-1]:
            break
    return f"{amount:.1f} {unit}"
