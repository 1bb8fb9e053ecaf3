"""Listings without handles: where a reader is in a directory depends on nothing but the names that are in it.

A name's position is a hash of it, so a listing can go on after any name, whatever was made, removed or forgotten
meanwhile: what is there all the time is listed once, as readdir(3) promises, and no state is needed for that. The names
of the last few directories are kept, to be made once for a listing and not for each part of it.

A directory may hold very many names: they are put into compartments in steps, and each compartment is sorted when a
listing comes to it.
"""

from __future__ import annotations

from binascii import crc32
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from fuseunion.core.tree.directory import Directory
from fuseunion.core.union import Union
from fuseunion.steps import Steps

DOT, DOT_DOT = 1, 2
"""The positions of the first two names."""

_FIRST = 3
_BITS = 62
_OTHER = 0x9E3779B9
_KEPT = 16
_AT_ONCE = 1024
"""Names between two stops."""


class Listing:
    """The names of a directory.

    Args:
        count: about how many there are.
    """

    __slots__ = ("_compartments", "_shift")

    def __init__(self, count: int) -> None:
        bits = max(count.bit_length() - 6, 0)
        self._shift = _BITS - bits
        self._compartments: list[list[tuple[int, bytes]]] = [[] for _ in range(1 << bits)]

    def add(self, names: Sequence[bytes]) -> None:
        """Some more names."""
        for name in names:
            # Python's own hash differs from process to process, and listings of one tree should not.
            position = crc32(name) << 30 | crc32(name, _OTHER) >> 2
            self._compartments[position >> self._shift].append((position, name))

    def after(self, position: int) -> Iterator[tuple[int, bytes]]:
        """Positions and names behind a position, in their order."""
        last = max(position, _FIRST - 1)
        for compartment in self._compartments[max(position - _FIRST, 0) >> self._shift :]:
            compartment.sort()
            previous = -1
            for number, name in compartment:
                previous = max(number, previous + 1)  # two names with one hash
                if previous + _FIRST > last:
                    yield previous + _FIRST, name


class Listings:
    """The listings of one mount."""

    def __init__(self, union: Union) -> None:
        self._union = union
        self._kept: OrderedDict[int, Listing] = OrderedDict()

    def of(self, directory: Directory, *, again: bool) -> Steps[Listing]:
        """The names of a directory; looked at once more when `again` is asked for.

        Raises:
            OSError: of the layers; EACCES for a directory that may not be read; ESTALE for one that was exchanged.
        """
        listing = None if again else self._kept.get(directory.ino)
        if listing is None:
            names = yield from self._union.names_of(directory)
            listing = Listing(len(names))
            for start in range(0, len(names), _AT_ONCE):
                listing.add(names[start : start + _AT_ONCE])
                yield
            self._kept[directory.ino] = listing
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return listing

    def forget_all(self) -> None:
        """Directories were changed behind our back."""
        self._kept.clear()

    def forgotten(self, number: int) -> None:
        """A listing of a directory came to its end."""
        self._kept.pop(number, None)
