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

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.format import xattr_names
from fuseunion.core.format.numbers import Ino, Numbers
from fuseunion.linux.objects.real_object import RealObject

_HEADER = struct.Struct("<BQQq")
_VERSION = 1
_LONGEST_PATH = 1024

# A mark that cannot be kept only costs the number at the next mount.
_TOLERATED = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSPC, errno.EDQUOT, errno.E2BIG, errno.ERANGE})

NO_MARK = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM})
"""What reading a mark answers where there is none: created in the upper, or of a kind that holds no xattrs."""


def path_of(real: RealDir, name: bytes) -> bytes:
    """The path of `name` from the layer's root: names joined by "/"."""
    return b"/".join([*real.way()[1], name])


def write(held: RealObject, prefix: bytes, upper_ino: int, number: Ino, ctime_ns: int) -> None:
    """Set the mark of a new copy.

    Args:
        upper_ino: real inode number of the copy.
        number: of the lower object.
        ctime_ns: its time of change.
    """
    if not -(1 << 63) <= ctime_ns < 1 << 63:
        return  # a time beyond the year 2262 cannot be told; the number is then not kept
    rewrite(held, prefix, _HEADER.pack(_VERSION, upper_ino, number, ctime_ns))


def template() -> bytes:
    """The value of a mark for who fills in the rest itself (engines/fuse/wire/native/plain/copy.c)."""
    return _HEADER.pack(_VERSION, 0, 0, 0)


def rewrite(held: RealObject, prefix: bytes, value: bytes) -> bool:
    """Replace the mark of an object; False where it cannot be kept."""
    try:
        held.setxattr(prefix + xattr_names.UNION_ORIGIN, value)
    except OSError as error:
        if error.errno not in _TOLERATED:
            raise
        return False
    return True


def has_path(value: bytes) -> bool:
    """True when there is nothing to complete: a mark with a path, or of another version."""
    return len(value) != _HEADER.size or value[0] != _VERSION


def with_path(value: bytes, lower_path: bytes) -> bytes | None:
    """The value of a mark with the path put in, or None when that is too long to be kept."""
    return value + lower_path if len(lower_path) <= _LONGEST_PATH else None


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
            lowers: the lower directories in which `name` is looked for first; empty for an object with several names,
                which must all answer the same.
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
            if b"\0" in path or not all(parents) or not last or {b".", b".."} & {*parents, last}:
                return None  # not written by us
            for root in self._roots:
                way = [root]
                for parent in parents:
                    way.append(way[-1].child(parent))
                try:
                    st = way[-1].stat(last)
                except OSError:
                    continue  # a lower that does not hold that path, or hides it from us
                finally:
                    for real in reversed(way):
                        real.close()
                if self._matches(st, number, ctime_ns):
                    return Ino(number)
        return None

    def _matches(self, st: os.stat_result | None, number: int, ctime_ns: int) -> bool:
        return st is not None and st.st_ctime_ns == ctime_ns and self._numbers.number(st.st_dev, st.st_ino) == number
