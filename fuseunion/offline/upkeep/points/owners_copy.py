"""The database of stored owners of an upper, while its objects are copied: the rows are about other objects then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fuseunion.core.disk import trees
from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.ownership.store import OwnershipStore
from fuseunion.linux import owned
from fuseunion.offline.upkeep.points.place import KEPT


@contextmanager
def stores_of(target: RealDir, area: Layer, made: RealDir) -> Iterator[tuple[OwnershipStore, OwnershipStore]]:
    """The database of the owners as it is, and the one of a copy.

    The one that is may be a live mount's: a copy of its files is opened.
    """
    from fuseunion.core.ownership.database_store import DatabaseStore

    os.mkdir(b"owners", 0o700, dir_fd=target.fd())
    copied = target.child(b"owners")
    for name in KEPT[1:3]:
        st = area.root.stat(name)
        if st is not None:
            _copy_file(area.root, name, copied)
    before = DatabaseStore(copied.fd())
    try:
        after = DatabaseStore(made.fd(), volatile=True)
        try:
            yield before, after
        finally:
            after.close()
    finally:
        before.close()
        trees.remove(target, b"owners")


def _copy_file(source: RealDir, name: bytes, target: RealDir) -> None:
    fd = source.open_regular(name, os.O_RDONLY)[0]
    try:
        made = owned.new_file(name, target.fd())
        try:
            while data := os.read(fd, 1 << 20):
                os.write(made, data)
        finally:
            os.close(made)
    finally:
        os.close(fd)
