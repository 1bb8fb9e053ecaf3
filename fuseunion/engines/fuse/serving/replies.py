"""What is told to the kernel: attributes with shown ids, and whom a request came from.

Entries and attributes are valid for a very long time, and names that are not there are cached too, because nobody but
this daemon may change the layers. A reply is made once for each inode and kept there until the core drops it
(`Inode.stale`), so that a warm listing only copies.
"""

from __future__ import annotations

import os

import pyfuse3
from pyfuse3 import EntryAttributes, RequestContext

from fuseunion.core.ids.identity import DiskGid, DiskUid, ShownGid, ShownUid
from fuseunion.core.ops.create import Owner
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.linux.namespaces import in_first_user_namespace


class Replies:
    """The replies of one mount.

    Args:
        timeout: how long the kernel may keep entries and attributes, in seconds.
        own_root: every caller that gets in is root of the tree.
    """

    __slots__ = ("_first_namespace", "_identity", "_own_root", "_timeout", "_umask_pending", "_union", "negative")

    def __init__(self, union: Union, timeout: float, *, own_root: bool) -> None:
        self._union = union
        self._own_root = own_root
        self._first_namespace = in_first_user_namespace()
        self._timeout = timeout
        self._identity = union.settings.identity
        self._umask_pending = union.settings.umask_pending
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

    def _entry(self, inode: Inode, st: os.stat_result, nlink: int) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode.ino)
        entry.entry_timeout = self._timeout
        entry.attr_timeout = self._timeout
        entry.st_mode = pyfuse3.ModeT(st.st_mode)
        entry.st_nlink = nlink
        if self._identity.trivial:
            entry.st_uid = st.st_uid
            entry.st_gid = st.st_gid
        else:
            entry.st_uid = self._identity.shown_uid(DiskUid(st.st_uid))
            entry.st_gid = self._identity.shown_gid(DiskGid(st.st_gid))
        entry.st_rdev = st.st_rdev
        entry.st_size = st.st_size
        entry.st_blksize = st.st_blksize
        entry.st_blocks = st.st_blocks
        entry.st_atime_ns = st.st_atime_ns
        entry.st_mtime_ns = st.st_mtime_ns
        entry.st_ctime_ns = st.st_ctime_ns
        return entry

    def told(self, inode: Inode) -> EntryAttributes:
        """A reply that makes the kernel know the inode once more."""
        entry = self.attributes(inode)
        self._union.remember(inode)
        return entry

    def owner(self, ctx: RequestContext) -> Owner:
        """Whom a new object belongs to, in ids on disk.

        Raises:
            OSError: EINVAL for a caller that the id map does not cover.
        """
        umask = ctx.umask if self._umask_pending else 0
        if self._identity.trivial:
            return Owner(ctx.uid, ctx.gid, umask)
        identity = self._identity
        uid, gid = identity.uids.disk_or_none(ctx.uid), identity.gids.disk_or_none(ctx.gid)
        if uid is None and ctx.uid == os.geteuid():
            # The user who mounted it may make things though the map leaves that user out: podman does, as root of its
            # own user namespace, before a container starts. They become the user's own, as without a map.
            return Owner(ctx.uid, ctx.gid if gid is None else gid, umask)
        return Owner(identity.disk_uid(ShownUid(ctx.uid)), identity.disk_gid(ShownGid(ctx.gid)), umask)

    def keeps_set_id(self, ctx: RequestContext) -> bool:
        """True when a file keeps its set-ID bits though the caller changes its data (fs/attr.c
        setattr_should_drop_suidgid: CAP_FSETID in the first user namespace)."""
        return ctx.uid == 0 and self._first_namespace

    def is_outsider(self, inode: Inode, ctx: RequestContext) -> bool:
        """True when the caller is neither root nor in the group of an object, as far as that can be known."""
        if ctx.uid == 0 or self._own_root:
            return False
        st, _ = self._union.stat(inode)
        shown_gid = self._identity.shown_gid(DiskGid(st.st_gid))
        if shown_gid == ctx.gid:
            return False
        try:
            return shown_gid not in pyfuse3.get_sup_groups(ctx.pid)
        except OSError:
            return True  # it has ended, or lives in another pid namespace: then its number here is 0
