"""What of a farm cannot be brought into UPPER, and what the user is told to do about it."""

from __future__ import annotations

import errno
import os

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.union import Union
from fuseunion.errors import ExitCode, UserError


def stuck(way: bytes, why: str) -> UserError:
    """The complaint about an object that cannot stay where it is.

    Args:
        way: its path from MERGED.
        why: a predicate, to follow the path.
    """
    return UserError(
        f"'{os.fsdecode(way)}' {why}; move it back to where it was, or remove it, and try again", ExitCode.LAYERS
    )


def check_storable(union: Union, name: bytes, st: os.stat_result, way: bytes) -> None:
    """Refuse what would be a whiteout in UPPER.

    Args:
        way: the path of the name from MERGED.

    Raises:
        UserError: LAYERS.
    """
    try:
        union.check_storable(name, st)
    except OSError as error:
        reason = "a device 0/0 is a whiteout" if error.errno == errno.EPERM else "its name is a whiteout's"
        raise UserError(
            f"'{os.fsdecode(way)}' cannot be kept in UPPER: {reason}; rename or remove it and try again",
            ExitCode.LAYERS,
        ) from None


def check_readable(source: RealDir, name: bytes, rights: int, way: bytes) -> None:
    """Refuse an object of a layer that has to be copied and may not be read.

    Args:
        rights: as of access(2).
        way: the path of its name from MERGED.

    Raises:
        UserError: LAYERS.
    """
    if not os.access(name, rights, dir_fd=source.fd(), effective_ids=True, follow_symlinks=False):
        raise stuck(way, "stands for what you may not read, so that it cannot be copied")
