"""Inode numbers: what st_ino shows, which for FUSE is the nodeid too.

    63  62                48 47                                   0
    +---+-------------------+--------------------------------------+
    | 0 |  filesystem index |  real inode number                   |   it fits
    +---+-------------------+--------------------------------------+
    | 0 | 1 |  62 bits of a hash of (filesystem index, real number) |   it does not, or the number is taken
    +---+-------------------+--------------------------------------+

Filesystems are counted from the bottom lower upwards, so that layers on one filesystem show their real numbers and
a layer added on top changes nothing below it. A number depends on nothing but the layers, and is therefore the same
at the next mount. 1 is the root of the mount (FUSE_ROOT_ID) and is given to nothing else.
"""

from __future__ import annotations

from typing import NewType

from fuseunion.core.format.digest import blake2b

Ino = NewType("Ino", int)

ROOT = Ino(1)

_INDEX_SHIFT = 48
_INDEX_LIMIT = 1 << 14
_HASHED = 1 << 62


class Numbers:
    """Maps (st_dev, real inode number) to the number shown.

    Args:
        devices: st_dev of the layers, the bottom lower first, the upper last.
    """

    __slots__ = ("_devices", "_index")

    def __init__(self, devices: list[int]) -> None:
        self._index: dict[int, int] = {}
        self._devices: dict[int, int] = {}
        for device in devices:
            self._index.setdefault(device, len(self._index))

    def device(self, device: int) -> int:
        """The same st_dev, as one object for all who keep it: each lstat makes another, of 32 bytes."""
        return self._devices.setdefault(device, device)

    def knows(self, device: int) -> bool:
        """Whether a filesystem has its index."""
        return device in self._index

    def agrees(self, devices: list[int]) -> bool:
        """Whether the layers, with one more among them, would be counted from the beginning as they are now.

        Args:
            devices: as of the class.
        """
        following = len(self._index)
        return all(self._index.get(device, following) == index for device, index in Numbers(devices)._index.items())

    def index(self, device: int) -> int | None:
        """What the real numbers of a filesystem get in their upper bits; None where they are hashed."""
        index = self._index.setdefault(device, len(self._index))
        return None if index >= _INDEX_LIMIT else index << _INDEX_SHIFT

    def number(self, device: int, ino: int) -> Ino:
        """The number of an object. A device first met here (a btrfs subvolume inside a layer) gets the next index."""
        index = self._index.setdefault(device, len(self._index))
        if ino >> _INDEX_SHIFT or index >= _INDEX_LIMIT or ino <= ROOT:
            return self.hashed(index, ino, 0)
        return Ino(index << _INDEX_SHIFT | ino if index else ino)  # the same object: 32 bytes less for each inode

    def hashed(self, index: int, ino: int, attempt: int) -> Ino:
        """A number from the table range; another `attempt` gives another number, when one is taken."""
        text = b"%d %d %d" % (index, ino, attempt)
        digest = blake2b(text, digest_size=8).digest()
        return Ino(_HASHED | int.from_bytes(digest, "big") >> 2)
