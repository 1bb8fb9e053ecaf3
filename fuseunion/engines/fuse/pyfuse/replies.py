"""What is told to the kernel through pyfuse3: attributes with shown ids.

Entries and attributes are valid for a very long time, and names that are not there are cached too, because nobody but
this daemon may change the layers. A reply is made once for each inode and kept there until the core drops it
(`Inode.stale`), so that a warm listing only copies.
"""

from __future__ import annotations

import os

import pyfuse3
from pyfuse3 import EntryAttributes

from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union


class Replies:
    """The replies of one mount.

    Args:
        timeout: how long the kernel may keep entries and attributes, in seconds.
    """

    __slots__ = ("_identity", "_timeout", "_union", "negative")

    def __init__(self, union: Union, timeout: float) -> None:
        self._union = union
        self._timeout = timeout
        self._identity = union.settings.identity
        self.negative = EntryAttributes()
        """Tells the kernel that a name is not there, and that it may remember that."""
        self.negative.st_ino = pyfuse3.InodeT(0)
        self.negative.entry_timeout = timeout

    def attributes(self, inode: Inode) -> EntryAttributes:
        """The attributes of an inode, ready to be sent."""
        ready = inode.reply
        if ready is not None:
            return ready  # type: ignore[return-value]
        entry = self._entry(inode, *self._union.stat(inode))
        inode.reply = entry
        inode.st = None  # the reply says it all, in a fifth of the memory
        return entry

    def unreadable(self, inode: Inode, st: os.stat_result) -> EntryAttributes:
        """An entry for a listing whose object answers an error: the kernel must not remember it."""
        entry = self._entry(inode, st, 1)
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    def unkept(self, inode: Inode) -> EntryAttributes:
        """As `attributes`, of a name that the kernel must not remember; the attributes it may."""
        entry = self._entry(inode, *self._union.stat(inode))
        entry.entry_timeout = 0
        return entry

    def _entry(self, inode: Inode, st: os.stat_result, nlink: int) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode.ino)
        entry.entry_timeout = self._timeout
        entry.attr_timeout = self._timeout
        entry.st_mode = pyfuse3.ModeT(st.st_mode)
        entry.st_nlink = nlink
        entry.st_uid, entry.st_gid = self._identity.shown_owner(st)
        entry.st_rdev = st.st_rdev
        entry.st_size = st.st_size
        entry.st_blksize = st.st_blksize
        entry.st_blocks = st.st_blocks
        entry.st_atime_ns = st.st_atime_ns
        entry.st_mtime_ns = st.st_mtime_ns
        entry.st_ctime_ns = st.st_ctime_ns
        return entry


class Unkept:
    """The replies of one mount while names are about to mean something else (Requests.renewed)."""

    __slots__ = ("_replies",)

    def __init__(self, replies: Replies) -> None:
        self._replies = replies

    def attributes(self, inode: Inode) -> EntryAttributes:
        """As Replies.unkept."""
        return self._replies.unkept(inode)

    def unreadable(self, inode: Inode, st: os.stat_result) -> EntryAttributes:
        """As Replies.unreadable."""
        return self._replies.unreadable(inode, st)
