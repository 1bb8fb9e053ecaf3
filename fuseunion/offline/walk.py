"""Every object of a tree, without following a link, leaving the filesystem, or keeping more than two descriptors.

A layer is untrusted: it may be deeper than PATH_MAX, and it may hold links that lead out of it. So the walk goes one
name at a time from directory descriptors, and goes up again through "..", checking that it arrives where it came from.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from fuseunion.linux import syscalls
from fuseunion.linux.objects.real_object import RealObject

_BENEATH = syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_SYMLINKS
_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Found:
    """One object; valid until the walk goes on.

    Attributes:
        held: the object, by an O_PATH descriptor.
        path: where it lies in the tree; empty for the root.
        st: its stat result.
    """

    held: RealObject
    path: bytes
    st: os.stat_result


def walk(root_fd: int) -> Iterator[Found]:
    """The root and everything beneath it, directories before what they hold.

    Raises:
        OSError: with the path in the tree as its filename; EXDEV where something is mounted in the tree.
    """
    here = os.open(b".", os.O_PATH | os.O_DIRECTORY, dir_fd=root_fd)
    try:
        yield Found(RealObject(here), b"", os.fstat(here))
        trail = [_Level(here, b"")]
        while trail:
            level = trail[-1]
            if not level.names:
                trail.pop()
                if trail:
                    here = _replace(here, _parent(here, trail[-1], level.path))
                continue
            name = level.names.pop()
            path = level.path + b"/" + name if level.path else name
            try:
                fd = syscalls.openat2(here, name, os.O_PATH | os.O_NOFOLLOW, _BENEATH)
            except OSError as error:
                raise OSError(error.errno, error.strerror, path) from None
            try:
                st = os.fstat(fd)
                yield Found(RealObject(fd), path, st)
                if stat.S_ISDIR(st.st_mode):
                    trail.append(_Level(fd, path))
                    here, fd = fd, here
            finally:
                os.close(fd)
    finally:
        os.close(here)


class _Level:
    """A directory on the way down, and the names in it that are still to be visited."""

    def __init__(self, fd: int, path: bytes) -> None:
        self.path = path
        self.identity = _identity(fd)
        try:
            readable = os.open(b".", _READ, dir_fd=fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        try:
            self.names = sorted((os.fsencode(name) for name in os.listdir(readable)), reverse=True)
        finally:
            os.close(readable)


def _parent(fd: int, level: _Level, path: bytes) -> int:
    parent = os.open(b"..", os.O_PATH | os.O_DIRECTORY, dir_fd=fd)
    if _identity(parent) != level.identity:
        os.close(parent)
        raise OSError(errno.ESTALE, "moved while it was looked at", path)
    return parent


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new


def _identity(fd: int) -> tuple[int, int]:
    st = os.fstat(fd)
    return st.st_dev, st.st_ino
