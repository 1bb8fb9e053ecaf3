"""What is told to the kernel of an inode: struct fuse_entry_out, ready to be sent.

Entries and attributes are valid for a very long time, and names that are not there are cached too, because nobody but
this daemon may change the layers. An entry is made once for each inode and kept there until the core drops it
(`Inode.stale`), so that a warm listing only copies. Of a file of a lower that was read, and of a directory that was
listed, the extension remembers the attributes; then a token lies in the entry's place, with which they go: there is no
other place where one has to think of it.
"""

from __future__ import annotations

import os

from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.engines.fuse.wire.layouts import DIRENT, ENTRY, MODE, UID
from fuseunion.engines.fuse.wire.native.device import device

_SECOND = 1_000_000_000
_LONGEST = 1 << 62
_WORD = 0xFFFFFFFF
_LONG = 0xFFFFFFFFFFFFFFFF
_ENTRY_VALID, _ENTRY_VALID_NSEC = 2, 4
"""Fields of struct fuse_entry_out."""


class Entries:
    """The entries of one mount.

    Args:
        timeout: how long the kernel may keep entries and attributes, in seconds.

    Attributes:
        valid: how long, in whole seconds and nanoseconds.
        negative: tells the kernel that a name is not there, and that it may remember that.
    """

    __slots__ = ("_identity", "_nsec", "_seconds", "_union", "negative", "valid")

    def __init__(self, union: Union, timeout: float) -> None:
        self._union = union
        self._identity = union.settings.identity
        self._seconds = int(min(timeout, _LONGEST))
        self._nsec = int((timeout - int(timeout)) * _SECOND) if timeout < _LONGEST else 0
        self.valid = (self._seconds, self._nsec)
        self.negative = ENTRY.pack(0, 0, self._seconds, 0, self._nsec, *(0,) * 17)

    def attributes(self, inode: Inode) -> bytes:
        """The entry of an inode."""
        ready = inode.reply
        if isinstance(ready, bytes):
            return ready
        if type(ready) is Remembered and ready.entry is not None:
            return ready.entry
        entry = self._entry(inode, *self._union.stat(inode), self._seconds, self._nsec)
        inode.reply = entry
        inode.st = None  # the entry says it all, in a fifth of the memory
        return entry

    def mode(self, inode: Inode) -> int:
        """The mode of an inode, with its type."""
        return ENTRY.unpack(self.attributes(inode))[MODE]  # type: ignore[no-any-return]

    def owner(self, inode: Inode) -> int:
        """The user whom an inode is shown to belong to."""
        return ENTRY.unpack(self.attributes(inode))[UID]  # type: ignore[no-any-return]

    def unreadable(self, inode: Inode, st: os.stat_result) -> bytes:
        """The entry of an object that answers an error: the kernel must not remember it."""
        return self._entry(inode, st, 1, 0, 0)

    def _entry(self, inode: Inode, st: os.stat_result, nlink: int, seconds: int, nsec: int) -> bytes:
        uid, gid = self._identity.shown_owner(st)
        ino = inode.ino
        atime, mtime, ctime = st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns
        return ENTRY.pack(
            ino,
            0,
            seconds,
            seconds,
            nsec,
            nsec,
            ino,
            st.st_size,
            st.st_blocks,
            atime // _SECOND & _LONG,
            mtime // _SECOND & _LONG,
            ctime // _SECOND & _LONG,
            atime % _SECOND,
            mtime % _SECOND,
            ctime % _SECOND,
            st.st_mode,
            nlink & _WORD,
            uid,
            gid,
            st.st_rdev & _WORD,
            st.st_blksize & _WORD,
            0,
        )


class Remembered:
    """The extension may remember the attributes of an inode for as long as this is there
    (wire/native/repeated/remembered.c).

    Args:
        number: of the inode.
        entry: where it is ready.
    """

    __slots__ = ("_number", "entry")

    def __init__(self, number: int, entry: bytes | None = None) -> None:
        self._number = number
        self.entry = entry

    def __del__(self) -> None:
        assert device is not None
        device.forget_attributes(self._number)


def remembered(file: File) -> None:
    """The extension may have just remembered the attributes of a file."""
    if type(file.reply) is not Remembered:  # dropped now, it would have them forgotten
        file.reply = Remembered(file.ino)


def remember(directory: Directory) -> None:
    """Have the extension remember what the kernel was told of a directory: it asks for it again after each listing."""
    ready = directory.reply
    entry = ready.entry if type(ready) is Remembered else ready
    if not isinstance(entry, bytes):
        return
    assert device is not None
    device.note_attributes(entry)
    if entry is ready:
        directory.reply = Remembered(directory.ino, entry)


def unkept(entry: bytes) -> bytes:
    """The same entry, of a name that the kernel must not remember; the attributes it may."""
    fields = list(ENTRY.unpack(entry))
    fields[_ENTRY_VALID] = fields[_ENTRY_VALID_NSEC] = 0
    return ENTRY.pack(*fields)


def unkept_listing(entries: bytes, directory: int, names: set[tuple[int, bytes]]) -> bytes:
    """As `unkept`, of each name in an answer to READDIRPLUS (struct fuse_direntplus).

    Args:
        directory: its number.
        names: gets them.
    """
    parts: list[bytes] = []
    begin = 0
    while begin < len(entries):
        end = begin + ENTRY.size
        _, _, length, _ = DIRENT.unpack_from(entries, end)
        name = end + DIRENT.size
        names.add((directory, entries[name : name + length]))
        parts.append(unkept(entries[begin:end]))
        begin = name + (length + 7 & ~7)
        parts.append(entries[end:begin])
    return b"".join(parts)
