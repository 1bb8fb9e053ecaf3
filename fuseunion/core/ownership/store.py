"""The interface of an ownership store.

An object is given together with the stat result of the real object, which every caller has at hand.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod

from fuseunion.core.format import xattr_names
from fuseunion.core.ids.identity import KEEP
from fuseunion.core.ownership import stored_names
from fuseunion.core.ownership.facts import Facts
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.linux.os_error import os_error


class OwnershipStore(ABC):
    """Where the owner, mode and device number of a layer's objects are kept.

    Attributes:
        label: how the log names it.
        guarded: real objects are kept closed to others, since not everything is believed (belief.py).
        needs_paths: something of it is reached by a path as long as it is open, which only its mount namespace has.
    """

    label: str
    guarded = False
    needs_paths = False

    @abstractmethod
    def find(self, where: RealObject, st: os.stat_result) -> Facts | None:
        """What is stored of an object, or None where the real stat result is all there is.

        Raises:
            OSError: EINVAL for an attribute that cannot be read, EIO for a broken database, as the real access.
        """

    @abstractmethod
    def store(self, where: RealObject, st: os.stat_result, facts: Facts) -> None:
        """Remember the facts of an object, whose real stat result is given.

        Raises:
            OSError: as setxattr(2); EIO, ENOSPC for the database.
        """

    def load(self, where: RealObject, st: os.stat_result) -> os.stat_result:
        """The real stat result with what is stored in place of owner, mode, type and device number.

        Raises:
            OSError: as `find`.
        """
        facts = self.find(where, st)
        return st if facts is None else facts.apply(st)

    def change(
        self, where: RealObject, st: os.stat_result, *, uid: int = KEEP, gid: int = KEEP, mode: int = KEEP
    ) -> None:
        """chown(2) and chmod(2): change some of the facts and keep the others.

        Args:
            mode: permission, set-id and sticky bits.

        Raises:
            OSError: as `find` and `store`.
        """
        facts = Facts.of(self.load(where, st))
        self.store(
            where,
            st,
            facts._replace(
                uid=facts.uid if uid == KEEP else uid,
                gid=facts.gid if gid == KEEP else gid,
                mode=facts.mode if mode == KEEP else mode,
            ),
        )

    def xattr_to_disk(self, name: bytes) -> bytes:
        """The name under which a user's attribute is kept in a layer with this store.

        Raises:
            OSError: EPERM for names that a user may not set: a store's own, which would be a way around chown(2).
        """
        if name.startswith(stored_names.PREFIX) or name in stored_names.STORED:
            raise os_error(errno.EPERM)
        return xattr_names.to_disk(name)

    def xattr_to_shown(self, disk: bytes) -> bytes | None:
        """The name a user sees for one on disk, or None when it is hidden."""
        return (
            None if disk in stored_names.STORED or disk.startswith(stored_names.PREFIX) else xattr_names.to_shown(disk)
        )

    def believes_xattr(self, where: RealObject, disk: bytes) -> bool:
        """Whether an attribute of this name on disk stands for what it says, on this object.

        Raises:
            OSError: as lstat(2).
        """
        return True

    @abstractmethod
    def forget(self, st: os.stat_result) -> None:
        """The last name of an object is gone, and nobody has it open."""

    @abstractmethod
    def sync(self) -> None:
        """What was stored must survive a power failure from here on.

        Raises:
            OSError: EIO.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of all files."""
