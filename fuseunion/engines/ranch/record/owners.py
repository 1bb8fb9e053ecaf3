"""Whose the objects of a ranch are, and whether somebody changed that.

A user who may not give files away owns what the user makes, and can give it to the user's own groups alone. So the
owner of an object of the farm is the original's as far as its maker could give it (`Owners.of`), and any other owner is
one that somebody chose later. That has to be judged by what the maker could do, not by what the collecting process can:
to join or leave a group between the two changes nothing. The maker is therefore kept in the ranch's record.

Numbers mean nothing in another user namespace. A ranch that was made in one and is collected outside has owners that
cannot be judged: they then count as unchanged.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from fuseunion.core.copying.metadata import is_unknown, mode_kept
from fuseunion.core.ownership.facts import Facts
from fuseunion.linux import namespaces

_CAP_CHOWN = 1 << 0


@dataclass(frozen=True, slots=True)
class Owners:
    """Who makes a ranch.

    Attributes:
        uid, gid: of what the maker makes.
        groups: the other groups that it may be given to.
        anybody: it may be given to everybody who has a number in the maker's user namespace.
        namespace: what tells this namespace's numbers from another's.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    anybody: bool
    namespace: str

    @classmethod
    def mine(cls) -> Owners:
        """This process, as a maker."""
        effective = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
        return cls(
            os.geteuid(),
            os.getegid(),
            tuple(sorted(os.getgroups())),
            effective is not None and bool(int(effective[1], 16) & _CAP_CHOWN),
            _namespace(),
        )

    @property
    def comparable(self) -> bool:
        """Whether the numbers mean the same to this process."""
        return self.namespace == _namespace()

    def of(self, original: os.stat_result) -> tuple[int, int]:
        """User and group of an object that is made after this one.

        Args:
            original: lstat of this one.
        """
        uid, gid = original.st_uid, original.st_gid
        keeps_uid = self.anybody and not is_unknown(uid, "uid")
        keeps_gid = (self.anybody or gid in self.groups) and not is_unknown(gid, "gid")
        return uid if keeps_uid else self.uid, gid if keeps_gid else self.gid


def _namespace() -> str:
    return " | ".join(" ".join(namespaces.id_map(kind)) for kind in ("uid", "gid"))


def changed(made: os.stat_result, original: os.stat_result, owners: Owners | None) -> bool:
    """Whether somebody changed the owner of what was made after an original.

    Args:
        made, original: their lstat.
        owners: who made it; without, nobody can tell, and it counts as unchanged.
    """
    return owners is not None and (made.st_uid, made.st_gid) != owners.of(original)


def same_attributes(made: os.stat_result, original: os.stat_result, owners: Owners | None) -> bool:
    """Whether type, mode, owner and time of an object are those that it was made with. Arguments as of `changed`."""
    if stat.S_IFMT(made.st_mode) != stat.S_IFMT(original.st_mode) or not _same_time(made, original):
        return False
    if changed(made, original, owners):
        return False
    return stat.S_ISLNK(made.st_mode) or stat.S_IMODE(made.st_mode) == mode_kept(Facts.of(original), made)


def _same_time(made: os.stat_result, original: os.stat_result) -> bool:
    """Equal times, or equal as far as the filesystem of what was made keeps them (microseconds, seconds).

    How far it does is seen from the time of the last change, which nobody can set.
    """
    a, b = made.st_mtime_ns, original.st_mtime_ns
    units = (unit for unit in (1_000, 1_000_000_000) if made.st_ctime_ns % unit == 0)
    return a == b or any(a % unit == 0 and b // unit == a // unit for unit in units)
