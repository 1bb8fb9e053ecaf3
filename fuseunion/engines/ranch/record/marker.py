"""Marks in a ranch, as extended attributes that are never collected.

MERGED leads to the state of its ranch, where there are no attributes by one hidden link in it. Each directory tells
that the ranch made it; where it cannot, what is in it decides (collector.py). A private copy of a file with several
names tells which file it is of, since equal content cannot tell it from a file that the user put in its place.
"""

from __future__ import annotations

import os
from pathlib import Path

from fuseunion.linux.objects.real_object import RealObject

MADE = "user.fuseunion.made"
"""On every directory that a ranch made: its path there, so that it is told from one that the user put in its place."""

COPY = "user.fuseunion.copy"
"""On a private copy of a file with several names: the inode numbers of that file and of the copy, so that a copy that
was made of the copy, with its attributes, is not taken for it."""

XATTR = "user.fuseunion.ranch"
NAME = b".fuseunion-ranch"
"""Of the link; never shown to the union."""


def made(way: bytes) -> bytes:
    """The mark of the directory with this path; the end of a long path tells as much."""
    return way[-200:]


def is_made(directory: RealObject, way: bytes) -> bool:
    """Whether the ranch made a directory, for this place in it.

    Args:
        path: leads to the directory, and is followed.
        way: the directory's path from MERGED.
    """
    try:
        return directory.getxattr(MADE) == made(way)
    except OSError:
        return False  # somebody else did, or no attributes here


def mark_copy(fd: int, original: os.stat_result) -> None:
    """Mark a private copy, where there are attributes.

    Args:
        fd: the copy.
        original: lstat of the file that it is of.
    """
    try:
        os.setxattr(fd, COPY, b"%d %d" % (original.st_ino, os.fstat(fd).st_ino))
    except OSError:
        pass  # no attributes here


def copied_from(file: RealObject, st: os.stat_result) -> int | None:
    """The inode number of the file that a regular file is the private copy of; None for any other file.

    Args:
        file: the regular file.
        st: its lstat.

    Raises:
        PermissionError: its attributes may not be read.
    """
    try:
        value = file.getxattr(COPY)
    except PermissionError:
        raise
    except OSError:
        return None  # not marked, or no attributes here
    original, _, own = value.partition(b" ")
    return int(original) if original.isdigit() and own == b"%d" % st.st_ino else None


def has_copy_mark(file: RealObject) -> bool:
    """Whether a file has that mark, true or not."""
    try:
        return COPY.encode() in file.listxattr()
    except OSError:
        return False  # no attributes here


def put(directory: int, state: Path) -> None:
    """Mark a directory.

    Args:
        directory: a descriptor of it.
        state: where the record of its ranch is.

    Raises:
        OSError: it can be marked in neither way.
    """
    try:
        os.setxattr(directory, XATTR, os.fsencode(state))
    except OSError:
        try:
            os.symlink(os.fsencode(state), NAME, dir_fd=directory)
        except FileExistsError:
            pass  # marked by an earlier try


def find(directory: int) -> Path | None:
    """The state directory that a directory is marked with.

    Anybody who may write the directory can have put the mark there, so it says no more than where to look: it counts
    when the state is this user's alone, and its record names this directory (`ranch_at`).

    Args:
        directory: a descriptor of it.
    """
    try:
        text = os.getxattr(directory, XATTR)
    except OSError:
        # Not marked, or no attributes here.
        try:
            text = os.readlink(NAME, dir_fd=directory)
        except OSError:
            return None
    path = Path(os.fsdecode(text))
    return path if path.is_absolute() else None


def remove(directory: int) -> None:
    """Take the mark away, if there is one."""
    try:
        os.removexattr(directory, XATTR)
    except OSError:
        pass  # marked by a link, or not at all
    try:
        os.unlink(NAME, dir_fd=directory)
    except OSError:
        pass  # marked by the attribute, or not at all
