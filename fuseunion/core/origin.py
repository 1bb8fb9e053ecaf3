"""Where a copied-up object came from, so that it shows the lower's inode number after a remount too.

The mark `overlay.fuseunion.origin` on the copy, trusted. or user. like the other marks (fs/overlayfs hides and never
copies the whole prefix):

    +---------+-----------+--------------+---------------+-----------------------------------------+
    | version | upper ino | lower number | lower ctime   | path in the lower, only once it moved   |
    | 1 byte  | 8 bytes   | 8 bytes      | 8 bytes, ns   | names joined by "/"                     |
    +---------+-----------+--------------+---------------+-----------------------------------------+

It counts only if it is true: the upper object still has that inode number (else somebody copied it with its marks),
and the lower has that object under the same name or under the path (else the lower was changed). Two objects that
show one number would be merged into one by tools that look for hard links; a number that changes does no harm.

The path is left out until the object moves, because marks that fit into the inode cost nothing (ext4 keeps about
100 bytes there).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence

from fuseunion.core import xattrs
from fuseunion.core.numbers import Ino, Numbers
from fuseunion.core.realdir import RealDir

_HEADER = struct.Struct("<BQQq")
_VERSION = 1
_LONGEST_PATH = 1024

# A mark that cannot be kept only costs the number at the next mount.
_TOLERATED = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSPC, errno.EDQUOT, errno.E2BIG, errno.ERANGE})


def path_of(real: RealDir, name: bytes) -> bytes:
    """The path of `name` from the layer's root: names joined by "/"."""
    names = [name]
    node = real
    while node.parent is not None:
        names.append(node.name)
        node = node.parent
    return b"/".join(reversed(names))


def write(path: bytes | int, prefix: bytes, upper_ino: int, number: Ino, ctime_ns: int, lower_path: bytes) -> None:
    """Set the mark on a descriptor or a path (never followed)."""
    rewrite(path, prefix, _HEADER.pack(_VERSION, upper_ino, number, ctime_ns) + lower_path)


def rewrite(path: bytes | int, prefix: bytes, value: bytes) -> None:
    """Set the mark to a whole value."""
    try:
        if isinstance(path, int):
            os.setxattr(path, prefix + xattrs.UNION_ORIGIN, value)
        else:
            os.setxattr(path, prefix + xattrs.UNION_ORIGIN, value, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _TOLERATED:
            raise


def with_path(value: bytes, lower_path: bytes) -> bytes | None:
    """A mark's value with the path put in, or None when there is nothing to change."""
    if len(value) != _HEADER.size or value[0] != _VERSION or len(lower_path) > _LONGEST_PATH:
        return None
    return value + lower_path


class OriginReader:
    """Reads marks and checks them against the lowers.

    Args:
        roots: the roots of the lowers, topmost first.
    """

    __slots__ = ("_numbers", "_roots")

    def __init__(self, roots: Sequence[RealDir], numbers: Numbers) -> None:
        self._roots = roots
        self._numbers = numbers

    def number(self, value: bytes, upper_ino: int, lowers: Sequence[RealDir], name: bytes) -> Ino | None:
        """The lower's number, or None when the mark is not true.

        Args:
            value: of the mark.
            upper_ino: real inode number of the object that carries it.
            lowers: the lower directories in which `name` is looked for first.
        """
        if len(value) < _HEADER.size:
            return None
        version, marked_ino, number, ctime_ns = _HEADER.unpack_from(value)
        if version != _VERSION or marked_ino != upper_ino:
            return None
        for real in lowers:
            if self._matches(real.stat(name), number, ctime_ns):
                return Ino(number)
        path = value[_HEADER.size :]
        if path:
            *parents, last = path.split(b"/")
            for real in self._roots:
                for parent in parents:
                    real = real.child(parent)
                try:
                    st = real.stat(last)
                except OSError:
                    continue  # a lower that does not hold that path, or hides it from us
                if self._matches(st, number, ctime_ns):
                    return Ino(number)
        return None

    def _matches(self, st: os.stat_result | None, number: int, ctime_ns: int) -> bool:
        return st is not None and st.st_ctime_ns == ctime_ns and self._numbers.number(st.st_dev, st.st_ino) == number
