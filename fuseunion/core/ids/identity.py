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

Owners without a number in the user namespace (strangers) all look the same there, as the overflow id. A mount can show
them as one of the users that it knows, for whom the kernel then lets root act.

The identity without maps and squash is the common case, and costs an attribute test (`trivial`).
"""

from __future__ import annotations

import errno
import logging
import os
from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from operator import attrgetter
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
        with open(f"/proc/sys/kernel/overflow{kind}") as file:
            return int(file.read())
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

    __slots__ = ("_disk_to_shown", "_shown_to_disk", "kind", "ranges", "trivial")

    def __init__(self, ranges: Iterable[tuple[int, int, int]] = (), kind: str = "uid") -> None:
        self.kind = kind
        self.ranges = tuple(IdRange(*item) for item in ranges)
        self.trivial = not self.ranges
        for item in self.ranges:
            _check_range(item, kind)
        _refuse_overlaps(self.ranges, kind, "disk", "show")
        _refuse_overlaps(self.ranges, kind, "shown", "store")
        self._disk_to_shown = _Direction((item.disk, item.shown, item.length) for item in self.ranges)
        self._shown_to_disk = _Direction((item.shown, item.disk, item.length) for item in self.ranges)

    def shown_or_none(self, disk: int) -> int | None:
        """The shown id of a disk id, or None where the map does not cover it."""
        return disk if self.trivial else self._disk_to_shown.of(disk)

    def disk_or_none(self, shown: int) -> int | None:
        """The disk id of a shown id, or None where the map does not cover it."""
        return shown if self.trivial else self._shown_to_disk.of(shown)

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

    def _key(self) -> tuple[str, frozenset[IdRange]]:
        return self.kind, frozenset(self.ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdMap) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __str__(self) -> str:
        return ":".join(str(item) for item in self.ranges)

    def __repr__(self) -> str:
        return f"IdMap({self}, {self.kind!r})"


class _Direction:
    """One way through an id map.

    Args:
        ranges: (first id, what it becomes, how many) triples that do not overlap.
    """

    __slots__ = ("_ranges", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        self._ranges = sorted(ranges)
        self._starts = [start for start, _, _ in self._ranges]

    def of(self, number: int) -> int | None:
        """What an id becomes, or None where no range covers it."""
        at = bisect_right(self._starts, number) - 1
        if at >= 0:
            start, target, length = self._ranges[at]
            if number < start + length:
                return target + number - start
        return None


def _refuse_overlaps(ranges: Iterable[IdRange], kind: str, side: str, does: str) -> None:
    """Refuse ranges that overlap.

    Args:
        side: "disk" or "shown".
        does: what a range does with an id of that side, for the message.
    """
    first = attrgetter(side)
    for one, two in pairwise(sorted(ranges, key=first)):
        if first(one) + one.length > first(two):
            raise ValueError(
                f"{kind} map: {one} and {two} both {does} {side} id {first(two)}; let the ranges be disjoint"
            )


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
        stranger_uid, stranger_gid: the owner shown for an object whose own has no number in this user namespace, or
            None for the kernel's overflow id. Only where that id itself has no number here.

    Attributes:
        trivial: nothing is translated; callers may skip every other member.
        lenient: an owner that cannot be stored is left as it is, without an error.
    """

    __slots__ = ("gids", "lenient", "squash_gid", "squash_uid", "stranger_gid", "stranger_uid", "trivial", "uids")

    def __init__(
        self,
        uids: IdMap | None = None,
        gids: IdMap | None = None,
        squash_uid: int | None = None,
        squash_gid: int | None = None,
        stranger_uid: int | None = None,
        stranger_gid: int | None = None,
    ) -> None:
        self.uids = IdMap(kind="uid") if uids is None else uids
        self.gids = IdMap(kind="gid") if gids is None else gids
        self.squash_uid = squash_uid
        self.squash_gid = squash_gid
        self.stranger_uid = stranger_uid
        self.stranger_gid = stranger_gid
        self.lenient = squash_uid is not None or squash_gid is not None
        adopts = stranger_uid is not None or stranger_gid is not None
        self.trivial = not self.lenient and not adopts and self.uids.trivial and self.gids.trivial

    def _key(self) -> tuple[object, ...]:
        return self.uids, self.gids, self.squash_uid, self.squash_gid, self.stranger_uid, self.stranger_gid

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def shown_owner(self, st: os.stat_result) -> tuple[int, int]:
        """User and group to show for an object with this lstat."""
        if self.trivial:
            return st.st_uid, st.st_gid
        return self.shown_uid(DiskUid(st.st_uid)), self.shown_gid(DiskGid(st.st_gid))

    def shown_uid(self, disk: DiskUid) -> ShownUid:
        """The user to show for a user on disk."""
        if self.stranger_uid is not None and disk == overflow_id("uid"):
            return ShownUid(self.stranger_uid)
        return ShownUid(self.uids.to_shown(disk) if self.squash_uid is None else self.squash_uid)

    def shown_gid(self, disk: DiskGid) -> ShownGid:
        """The group to show for a group on disk."""
        if self.stranger_gid is not None and disk == overflow_id("gid"):
            return ShownGid(self.stranger_gid)
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
