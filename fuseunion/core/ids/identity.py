"""Whose files are they: the ids on disk and the ids that are shown.

Only this module turns one kind of id into the other. An id has two spellings:

* *disk*: what stat(2) of a layer says, in the namespace the daemon runs in;
* *shown*: what the users of the mount see, send in chown(2), and run as.

`IdMap` is the correspondence of one kind of id (users or groups), a set of triples DISK:SHOWN:LEN with the
meaning that containers/storage and fuse-overlayfs give them. Everything that leaves the daemon goes through
`to_shown` (attributes, ACL qualifiers, the root id of a capability), everything that enters goes through
`to_disk`. Copy-up goes through neither: it keeps what is on disk.

What the map does not cover has no spelling on the other side. It is shown as the kernel's overflow id, and it
cannot be stored: to_disk raises EINVAL, as chown(2) does for an id outside the user namespace.
(fuse-overlayfs writes the overflow id to disk, which loses the owner for good.) Covering is unambiguous
because overlapping triples are refused, as the kernel refuses them in /proc/PID/uid_map.

`Identity` is the pair of maps with the squash options: shown owners are replaced by fixed ids, and a change
of owner is attempted but allowed to fail. That is fuse-overlayfs' squash (main.c: find_mapping, do_fchown):
only what is shown is squashed, the way back uses the maps alone, and an error of chown is dropped. An id
that cannot be stored is therefore KEEP, "leave the owner that is there", when anything is squashed.

The identity without maps and squash is the common case, and costs an attribute test (`trivial`).
"""

from __future__ import annotations

import errno
import logging
from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, NewType

from fuseunion.linux.os_error import os_error

_log = logging.getLogger("fuseunion.identity")

DiskUid = NewType("DiskUid", int)
DiskGid = NewType("DiskGid", int)
ShownUid = NewType("ShownUid", int)
ShownGid = NewType("ShownGid", int)

KEEP = -1
"""In the place of an id to store: leave what is there, as -1 means in chown(2)."""

_ID_END = 2**32 - 1
"""Ids are 32 bits wide, and the last one means "no id" (include/linux/uidgid.h, uid_valid)."""

_OVERFLOW_DEFAULT = 65534


class IdRange(NamedTuple):
    """One triple of an id map."""

    disk: int
    shown: int
    length: int

    def __str__(self) -> str:
        return f"{self.disk}:{self.shown}:{self.length}"


@lru_cache(maxsize=2)
def overflow_id(kind: str) -> int:
    """The id that stands for an unmapped one: /proc/sys/kernel/overflowuid or overflowgid.

    Args:
        kind: "uid" or "gid".
    """
    try:
        return int(Path(f"/proc/sys/kernel/overflow{kind}").read_text())
    except OSError:
        # No /proc here: the kernel's default (include/linux/highuid.h) is right unless somebody changed it.
        return _OVERFLOW_DEFAULT


class IdMap:
    """A correspondence between disk ids and shown ids; the empty map is the identity.

    Args:
        ranges: (disk, shown, length) triples, in any order (`options.parse_id_map` reads them).
        kind: "uid" or "gid", for messages and the overflow id.

    Raises:
        ValueError: a triple is out of range, or two triples overlap on either side; the text is one line for
            the command line to print.
    """

    __slots__ = (
        "_by_disk",
        "_by_shown",
        "_disk_starts",
        "_shown_starts",
        "kind",
        "ranges",
        "trivial",
    )

    def __init__(self, ranges: Iterable[tuple[int, int, int]] = (), kind: str = "uid") -> None:
        self.kind = kind
        self.ranges = tuple(IdRange(*item) for item in ranges)
        self.trivial = not self.ranges
        for item in self.ranges:
            _check_range(item, kind)
        self._by_disk = sorted(self.ranges, key=lambda item: item.disk)
        self._by_shown = sorted(self.ranges, key=lambda item: item.shown)
        self._disk_starts = [item.disk for item in self._by_disk]
        self._shown_starts = [item.shown for item in self._by_shown]
        for one, two in zip(self._by_disk, self._by_disk[1:], strict=False):
            if one.disk + one.length > two.disk:
                raise ValueError(
                    f"{kind} map: {one} and {two} both show disk id {two.disk}; let the ranges be disjoint"
                )
        for one, two in zip(self._by_shown, self._by_shown[1:], strict=False):
            if one.shown + one.length > two.shown:
                raise ValueError(
                    f"{kind} map: {one} and {two} both store shown id {two.shown}; let the ranges be disjoint"
                )

    def shown_or_none(self, disk: int) -> int | None:
        """The shown id of a disk id, or None where the map does not cover it."""
        if self.trivial:
            return disk
        at = bisect_right(self._disk_starts, disk) - 1
        if at >= 0:
            item = self._by_disk[at]
            if disk < item.disk + item.length:
                return item.shown + disk - item.disk
        return None

    def disk_or_none(self, shown: int) -> int | None:
        """The disk id of a shown id, or None where the map does not cover it."""
        if self.trivial:
            return shown
        at = bisect_right(self._shown_starts, shown) - 1
        if at >= 0:
            item = self._by_shown[at]
            if shown < item.shown + item.length:
                return item.disk + shown - item.shown
        return None

    def to_shown(self, disk: int) -> int:
        """The id to show for a disk id: the overflow id where the map does not cover it."""
        shown = self.shown_or_none(disk)
        return overflow_id(self.kind) if shown is None else shown

    def to_disk(self, shown: int) -> int:
        """The id to store for a shown id.

        Raises:
            OSError: EINVAL where the map does not cover it (fs/open.c chown_common: unmapped id).
        """
        disk = self.disk_or_none(shown)
        if disk is None:
            _log.warning("%s %d is outside the %s map %s and cannot be stored", self.kind, shown, self.kind, self)
            raise os_error(errno.EINVAL)
        return disk

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdMap) and (self.kind, self._by_disk) == (other.kind, other._by_disk)

    def __hash__(self) -> int:
        return hash((self.kind, tuple(self._by_disk)))

    def __str__(self) -> str:
        return ":".join(str(item) for item in self.ranges)

    def __repr__(self) -> str:
        return f"IdMap({self}, {self.kind!r})"


def _check_range(item: IdRange, kind: str) -> None:
    if item.length < 1:
        raise ValueError(f"{kind} map: {item} covers nothing; the length must be at least 1")
    if max(item.disk, item.shown) + item.length > _ID_END:
        raise ValueError(f"{kind} map: {item} goes past the last id {_ID_END - 1}")


class Identity:
    """How owners are shown and stored; never changes.

    Args:
        uids, gids: the id maps; None shows ids as they are.
        squash_uid, squash_gid: the owner shown for every object, or None to show the mapped one.

    Attributes:
        trivial: nothing is translated; callers may skip every other member.
        lenient: an owner that cannot be stored is left as it is, without an error.
    """

    __slots__ = ("gids", "lenient", "squash_gid", "squash_uid", "trivial", "uids")

    def __init__(
        self,
        uids: IdMap | None = None,
        gids: IdMap | None = None,
        squash_uid: int | None = None,
        squash_gid: int | None = None,
    ) -> None:
        self.uids = IdMap(kind="uid") if uids is None else uids
        self.gids = IdMap(kind="gid") if gids is None else gids
        self.squash_uid = squash_uid
        self.squash_gid = squash_gid
        self.lenient = squash_uid is not None or squash_gid is not None
        self.trivial = not self.lenient and self.uids.trivial and self.gids.trivial

    def _key(self) -> tuple[IdMap, IdMap, int | None, int | None]:
        return self.uids, self.gids, self.squash_uid, self.squash_gid

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def shown_uid(self, disk: DiskUid) -> ShownUid:
        """The user to show for a user on disk."""
        return ShownUid(self.uids.to_shown(disk) if self.squash_uid is None else self.squash_uid)

    def shown_gid(self, disk: DiskGid) -> ShownGid:
        """The group to show for a group on disk."""
        return ShownGid(self.gids.to_shown(disk) if self.squash_gid is None else self.squash_gid)

    def disk_uid(self, shown: ShownUid) -> DiskUid:
        """The user to store for a shown one; KEEP passes through.

        Raises:
            OSError: EINVAL where the map does not cover it and nothing is squashed.
        """
        return DiskUid(self._to_disk(self.uids, shown))

    def disk_gid(self, shown: ShownGid) -> DiskGid:
        """The group to store for a shown one; KEEP passes through.

        Raises:
            OSError: EINVAL where the map does not cover it and nothing is squashed.
        """
        return DiskGid(self._to_disk(self.gids, shown))

    def _to_disk(self, idmap: IdMap, shown: int) -> int:
        if shown == KEEP:
            return KEEP
        if self.lenient:
            disk = idmap.disk_or_none(shown)
            return KEEP if disk is None else disk
        return idmap.to_disk(shown)


IDENTITY = Identity()
"""Ids are shown as they are on disk."""
