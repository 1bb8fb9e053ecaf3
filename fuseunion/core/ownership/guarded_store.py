"""The stores of a mount of the machine's root, which does not believe everything (belief.py)."""

from __future__ import annotations

import logging
import os
import stat

from fuseunion.core.ownership.belief import OTHERS_WRITE, ROOT, Belief
from fuseunion.core.ownership.facts import Facts
from fuseunion.core.ownership.store import OwnershipStore
from fuseunion.core.ownership.stored_names import PREFIX
from fuseunion.linux.objects.real_object import RealObject

_log = logging.getLogger("fuseunion.ownership")

_ROOT_ONLY = (PREFIX + b"security.", PREFIX + b"trusted.")
"""What stands for attributes that an owner could not set."""


class IgnoredStore(OwnershipStore):
    """The store of a lower of which nothing is believed: its own attributes stay hidden, and are never copied up."""

    label = "attributes that are not believed"

    def find(self, where: RealObject, st: os.stat_result) -> Facts | None:
        return None

    def store(self, where: RealObject, st: os.stat_result, facts: Facts) -> None:
        raise AssertionError("a lower is never written")

    def forget(self, st: os.stat_result) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class GuardedStore(OwnershipStore):
    """Another store, of whose facts only those count that are believed.

    What is stored here counts when it is read again: the real object becomes root's, and closed to others, where it is
    not.

    Args:
        inner: the store; this one owns it.
        belief: what is believed.
        layer: how the log names the layer.
    """

    guarded = True

    def __init__(self, inner: OwnershipStore, belief: Belief, layer: str) -> None:
        self.label = inner.label
        self.needs_paths = inner.needs_paths
        self.inner = inner
        self.belief = belief
        self._layer = layer
        self._told = False

    def find(self, where: RealObject, st: os.stat_result) -> Facts | None:
        facts = self.inner.find(where, st)
        # The name that `st` was taken from may lead to another object by now: the one that is held is judged.
        believed = None if facts is None else self.belief.limit(where.stat(), facts)
        if believed != facts and not self._told:
            self._told = True
            _log.warning(
                "stored owners of objects that do not belong to root alone are ignored in '%s': the first has the "
                "inode number %d and belongs to %d",
                self._layer,
                st.st_ino,
                st.st_uid,
            )
        return believed

    def store(self, where: RealObject, st: os.stat_result, facts: Facts) -> None:
        self.inner.store(where, st, facts)
        if self.belief.limit(st, facts) == facts:
            return
        if st.st_uid not in self.belief.owners:
            where.chown(ROOT, ROOT)
            self.inner.store(where, st, facts)  # again, since the owner may have changed it until now
        if not stat.S_ISLNK(st.st_mode):
            where.chmod(stat.S_IMODE(where.stat().st_mode) & ~OTHERS_WRITE)

    def believes_xattr(self, where: RealObject, disk: bytes) -> bool:
        return not disk.startswith(_ROOT_ONLY) or self.belief.trusts(where.stat())

    def xattr_to_disk(self, name: bytes) -> bytes:
        return self.inner.xattr_to_disk(name)

    def xattr_to_shown(self, disk: bytes) -> bytes | None:
        return self.inner.xattr_to_shown(disk)

    def forget(self, st: os.stat_result) -> None:
        self.inner.forget(st)

    def sync(self) -> None:
        self.inner.sync()

    def close(self) -> None:
        self.inner.close()
