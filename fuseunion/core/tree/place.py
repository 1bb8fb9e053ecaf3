"""Where a file lies: in one place at a time. Which one is changed in file.py alone.

    InLower    by name in a lower; stays valid for ever, since lowers never change
    InUpper    by name in the upper, once copied up or made there
    Held       by a descriptor, once no name leads to it any more (deleted but open, or a hard link whose remaining
               names were never looked up)

A name is only good for what was found there: `disk_id` tells whether it still leads to that (File.recognise).

A file goes from InLower to InUpper or Held, and between these two; never back to a lower.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from fuseunion.core.disk.realdir import RealDir
from fuseunion.linux.objects.recognition import DiskId

Location: TypeAlias = tuple[RealDir, bytes]
"""A real directory and a name in it."""


class _ByName(NamedTuple):
    real: RealDir
    name: bytes
    device: int
    number: int

    @property
    def disk_id(self) -> DiskId:
        """Of the object. It is asked for when a name is used again, and a pair kept for each file takes 56 bytes."""
        return self.device, self.number

    @property
    def location(self) -> Location:
        """The name that leads to it."""
        return self.real, self.name


class InLower(_ByName):
    """By name in a lower."""

    __slots__ = ()


class InUpper(_ByName):
    """By name in the upper: one of its names, or its entry in the link index."""

    __slots__ = ()


class Held(NamedTuple):
    """By a descriptor: that of a user who has it open, else one that the file owns.

    Attributes:
        stays_open: it has to be one that the file was opened with (LayerAccess.keeps_removed).
    """

    disk_id: DiskId
    stays_open: bool = False

    @property
    def location(self) -> None:
        """No name leads to it."""
        return


Place: TypeAlias = InLower | InUpper | Held
