"""Whether two lstat(2) are of one object.

An object is device and inode number; nothing else has both while it exists. Some filesystems number an object anew when
they have forgotten it (libfuse without use_ino, fs/fat, 9p, overlayfs over several filesystems): there all the rest has
to be as it was. That is said of lowers alone, since nothing changes in them.
"""

from __future__ import annotations

import os
import stat
from typing import TypeAlias

DiskId: TypeAlias = tuple[int, int]
"""st_dev and st_ino of an object of a layer."""


def id_of(st: os.stat_result) -> DiskId:
    """The device and the inode number that an lstat tells."""
    return st.st_dev, st.st_ino


def but_number(st: os.stat_result) -> tuple[int, ...]:
    """What lstat says of an object apart from its inode number, and apart from what reading it changes."""
    return st.st_dev, st.st_mode, st.st_uid, st.st_gid, st.st_size, st.st_mtime_ns, st.st_ctime_ns


class KnownDirectory:
    """What a directory is recognised by.

    Args:
        st: its lstat, or fstat.
        may_be_renumbered: it lies in a lower.
    """

    __slots__ = ("_id", "_rest")

    def __init__(self, st: os.stat_result, *, may_be_renumbered: bool) -> None:
        self._id = id_of(st)
        self._rest = _digest(st) if may_be_renumbered else None

    @classmethod
    def made(cls, disk_id: DiskId) -> KnownDirectory:
        """As of the class, of a directory of the upper that was just made."""
        known = cls.__new__(cls)
        known._id, known._rest = disk_id, None
        return known

    @property
    def disk_id(self) -> DiskId:
        """Its st_dev and st_ino."""
        return self._id

    def is_as(self, st: os.stat_result) -> bool:
        """Whether an lstat or fstat is of this directory."""
        if id_of(st) == self._id:
            return stat.S_ISDIR(st.st_mode)
        if self._rest is None or _digest(st) != self._rest:
            return False
        self._id = id_of(st)
        return True


def _digest(st: os.stat_result) -> int:
    """`but_number` as one number: there are many directories, and few filesystems that need it. Of bytes, whose hash
    has a key that nobody knows, so that no other directory can be made to have the same (PYTHONHASHSEED)."""
    return hash(b"%d %d %d %d %d %d %d" % but_number(st))
