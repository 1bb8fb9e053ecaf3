"""Listings without handles: where a reader is in a directory depends on nothing but the names that are in it.

A name's position is a hash of it, so a listing can go on after any name, whatever was made, removed or forgotten
meanwhile: what is there all the time is listed once, as readdir(3) promises, and no state is needed for that. The names
of the last few directories are kept, to be made once for a listing and not for each part of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict

from fuseunion.core.tree.directory import Directory
from fuseunion.core.union import Union

DOT, DOT_DOT = 1, 2
"""The positions of the first two names."""

_FIRST = 3
_MASK = (1 << 62) - 1
_KEPT = 16


class Listing:
    """The names of a directory, in the order of their positions."""

    __slots__ = ("names", "positions")

    def __init__(self, names: list[bytes]) -> None:
        placed = sorted([(hash(name) & _MASK, name) for name in names])
        self.names = [name for _, name in placed]
        self.positions: list[int] = []
        last = _FIRST - 1
        for position, _ in placed:
            last = max(position, last + 1)  # two names with one hash
            self.positions.append(last)

    def index_after(self, position: int) -> int:
        """The index of the first name behind a position."""
        return bisect_right(self.positions, position)


class Listings:
    """The listings of one mount."""

    def __init__(self, union: Union) -> None:
        self._union = union
        self._kept: OrderedDict[int, Listing] = OrderedDict()

    def of(self, directory: Directory, *, again: bool) -> Listing:
        """The names of a directory; looked at once more when `again` is asked for.

        Raises:
            OSError: of the layers; EACCES for a directory that may not be read.
        """
        listing = None if again else self._kept.get(directory.ino)
        if listing is None:
            listing = Listing(self._union.list_names(directory))
            self._kept[directory.ino] = listing
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(directory.ino)
        return listing

    def forgotten(self, number: int) -> None:
        """The kernel forgot a directory, or a listing of it came to its end."""
        self._kept.pop(number, None)
