"""Attributes that the extension remembers of a file of a lower, which was read (wire/native/repeated/remembered.c).

A token lies where Python would keep the file's ready entry (Inode.reply). Whatever makes that stale (Inode.stale), and
the end of the inode itself, drops the token, and with it what the extension remembers: there is no other place where
one has to think of it.
"""

from __future__ import annotations

from fuseunion.core.tree.file import File
from fuseunion.engines.fuse.wire.native.device import device


class Remembered:
    """The extension may remember the attributes of an inode for as long as this is there.

    Args:
        number: of the inode.
    """

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number = number

    def __del__(self) -> None:
        assert device is not None
        device.forget_attributes(self._number)


def keep(file: File) -> None:
    """The extension may have just remembered the attributes of a file."""
    if type(file.reply) is not Remembered:  # dropped now, it would have them forgotten
        file.reply = Remembered(file.ino)
