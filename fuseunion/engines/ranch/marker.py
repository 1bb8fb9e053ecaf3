"""Marks in a ranch, as extended attributes that are never collected.

MERGED leads to the state of its ranch, where there are no attributes by one hidden link in it. Each directory tells
that the ranch made it; where it cannot, what is in it decides (collect.py).
"""

from __future__ import annotations

import os
from pathlib import Path

MADE = "user.fuseunion.made"
"""On every directory that a ranch made: its path there, so that it is told from one that the user put in its place."""

XATTR = "user.fuseunion.ranch"
NAME = b".fuseunion-ranch"
"""Of the link; never shown to the union."""


def made(way: bytes) -> bytes:
    """The mark of the directory with this path; the end of a long path tells as much."""
    return way[-200:]


def put(directory: str, state: Path) -> None:
    """Mark a directory.

    Raises:
        OSError: it can be marked in neither way.
    """
    try:
        os.setxattr(directory, XATTR, os.fsencode(state))
    except OSError:
        try:
            os.symlink(os.fsencode(state), os.path.join(os.fsencode(directory), NAME))
        except FileExistsError:
            pass  # marked by an earlier try


def find(directory: str) -> Path | None:
    """The state directory that a directory is marked with."""
    try:
        return Path(os.fsdecode(os.getxattr(directory, XATTR)))
    except OSError:
        pass  # not marked, or no attributes here
    try:
        return Path(os.fsdecode(os.readlink(os.path.join(os.fsencode(directory), NAME))))
    except OSError:
        return None


def remove(directory: str) -> None:
    """Take the mark away, if there is one."""
    try:
        os.removexattr(directory, XATTR)
    except OSError:
        pass  # marked by a link, or not at all
    try:
        os.unlink(os.path.join(os.fsencode(directory), NAME))
    except OSError:
        pass  # marked by the attribute, or not at all
