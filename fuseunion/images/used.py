"""What an image was last used with: a note on its work directory, which `fuseunion image info` shows.

    user.fuseunion.used     the version that mounted it, and the lowers, topmost first; a line each

It is told to people and believed by nobody.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

NAME = "user.fuseunion.used"

_LONGEST = 2000
"""Bytes: it has to fit into the one block that ext has for attributes."""


def note(work_fd: int, version: str, lowers: Iterable[str]) -> None:
    """Write it, where there is space.

    Args:
        work_fd: of the work directory in the image.
        version: of fuseunion.
        lowers: their paths, topmost first.
    """
    lines = (f"fuseunion {version}", *lowers)
    value = os.fsencode("\n".join(line.replace("\n", "?") for line in lines))[:_LONGEST]
    # Without space, or on a filesystem without attributes, nobody is told.
    with contextlib.suppress(OSError):
        if not is_noted(work_fd) or os.getxattr(work_fd, NAME) != value:
            os.setxattr(work_fd, NAME, value)


def is_noted(work_fd: int) -> bool:
    """Whether a mount has written one.

    Raises:
        OSError: EIO and the like.
    """
    return NAME in os.listxattr(work_fd)


def told(value: bytes) -> list[str]:
    """What a note says, from wherever it was read: the program, then the lowers; nothing where it is empty."""
    return os.fsdecode(value[:_LONGEST]).split("\n") if value else []
