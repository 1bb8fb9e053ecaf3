"""The pyfuse3 adapter: it translates, locks and answers; the core decides.

Three rules keep the mount alive and right:

* One errno boundary around every handler (boundary.py).
* Between a check and the change that it allows there is no `await`. What may wait (bytes of a copy-up, fsync, a read
  that is not cached) goes to a worker thread, which gets descriptors and nothing else.
* One copy-up at a time for each file (copy_ups.py).
"""

from __future__ import annotations

import enum
import errno
import itertools
import os
import stat
from collections.abc import Generator, Sequence
from contextlib import closing

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from fuseunion.core.format import xattr_names
from fuseunion.core.format.xattr_names import MalformedError
from fuseunion.core.ids.identity import ShownGid, ShownUid
from fuseunion.core.ops.attributes import Change, setgid_is_at_risk
from fuseunion.core.ops.rename import check_flags
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.handle import DirectoryHandle, FileHandle, Handle
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.engines.fuse import questions
from fuseunion.engines.fuse.serving.boundary import answered, log
from fuseunion.engines.fuse.serving.copy_ups import CopyUps
from fuseunion.engines.fuse.serving.leases import patiently
from fuseunion.engines.fuse.serving.pace import Pace, in_steps
from fuseunion.engines.fuse.serving.reader import Reader
from fuseunion.engines.fuse.serving.replies import Replies
from fuseunion.engines.fuse.serving.settle import settle
from fuseunion.engines.fuse.serving.workers import Workers
from fuseunion.linux.os_error import os_error

PID_XATTR = questions.PID.encode()
SYNC_XATTR = questions.SYNC.encode()
FSYNC_XATTR = questions.FSYNC.encode()
COUNTS_XATTR = questions.COUNTS.encode()

# What the owner of a mount without permission checks may set, although it is never shown (Operations._restate).
OWNER_XATTR = b"user.containers.override_stat"


class Sent(enum.Enum):
    """What became of one name of a listing."""

    DONE = enum.auto()
    NOTHING = enum.auto()
    """It is hidden, or has gone since the names were taken."""
    NO_SPACE = enum.auto()
    """The reply is full."""


class Operations(pyfuse3.Operations):
    """The handlers of one mount.

    Args:
        union: what is mounted; the caller closes it afterwards.
        timeout: how long the kernel may keep entries and attributes, in seconds.
        trace: log each request.
        own_root: the kernel checks no permissions, and only the mounting user, as root of the tree, can get in.

    Attributes:
        device: the /dev/fuse descriptor that the requests come from, once there are any.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, union: Union, *, timeout: float = 1e9, trace: bool = False, own_root: bool = False) -> None:
        super().__init__()
        self.union = union
        self.trace = trace
        # FUSE_POSIX_ACL would switch the kernel's permission checks on again (fs/fuse/inode.c process_init_reply).
        self.enable_acl = union.settings.acl and not own_root
        self._own_root = own_root
        self._identity = union.settings.identity
        self._replies = Replies(union, timeout, own_root=own_root)
        self._workers = Workers()
        self._reader = Reader(self._workers)
        self._copy_ups = CopyUps(union, self._workers, self._reader)
        self._handles: dict[int, Handle] = {}
        # Of another type than the kernel knows; until a lookup or a listing has told it, or it forgot the inode.
        self._retyped: dict[int, Inode] = {}
        self._next_fh = itertools.count(1)
        self.device = -1
        # Who asks to write out waits for the one before: two at once would be no faster, and take two threads.
        self._writing_out = trio.Lock()

    # -- open files --------------------------------------------------------------------------------------------------

    def _keep(self, handle: Handle) -> pyfuse3.FileHandleT:
        fh = next(self._next_fh)
        self._handles[fh] = handle
        return pyfuse3.FileHandleT(fh)

    def _file_handle(self, fh: int) -> FileHandle:
        handle = self._handles.get(fh)
        if not isinstance(handle, FileHandle):
            raise os_error(errno.EBADF)
        return handle

    def _directory_handle(self, fh: int) -> DirectoryHandle:
        handle = self._handles.get(fh)
        if not isinstance(handle, DirectoryHandle):
            raise os_error(errno.EBADF)
        return handle

    # -- inodes ------------------------------------------------------------------------------------------------------

    def _inode(self, number: int) -> Inode:
        """The inode of a request that says a number.

        Raises:
            OSError: ESTALE for one that the kernel knows with another type (`_restate`), and as Union.inode.
        """
        if number in self._retyped:
            raise os_error(errno.ESTALE)
        return self.union.inode(number)

    def _file(self, number: int) -> File:
        """As `_inode`, for a non-directory. Raises EISDIR as well."""
        if number in self._retyped:
            raise os_error(errno.ESTALE)
        return self.union.file(number)

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        directory = self.union.directory(parent_inode)
        inode = self.union.lookup(directory, name)
        if inode is None:
            return self._replies.negative
        self.union.complete_links(inode, directory, name)
        reply = self._replies.told(inode)
        self._retyped.pop(inode.ino, None)
        return reply

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        # Not `answered`: forget has no reply, and pyfuse3 would let even a FUSEError end the mount.
        for ino, nlookup in inode_list:
            try:
                self.union.forget(ino, nlookup)
                if ino in self._retyped and not self._retyped[ino].nlookup:
                    del self._retyped[ino]
            except Exception:  # noqa: BLE001 - the boundary of a handler without a reply
                log.exception("unexpected error in forget of inode %d", ino)

    @answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._replies.attributes(self._inode(inode))

    @answered
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        target = self._inode(inode)
        wanted = (fields.update_mode, fields.update_uid, fields.update_gid, fields.update_size)
        change = Change(
            mode=attr.st_mode if fields.update_mode else None,
            uid=self._identity.disk_uid(ShownUid(attr.st_uid)) if fields.update_uid else None,
            gid=self._identity.disk_gid(ShownGid(attr.st_gid)) if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            # chown(2) with -1 for both ids asks for nothing but a new time of change (fs/open.c chown_common).
            touch=not any((*wanted, fields.update_atime, fields.update_mtime)),
        )
        if change.size is not None and isinstance(target, File):
            change = change._replace(mode=self._mode_without_setgid(target, change.mode, ctx))
        await self._change(target, change)
        return self._attributes_after_change(target)

    def _attributes_after_change(self, inode: Inode) -> EntryAttributes:
        """The attributes of an object whose change is made, and cannot be taken back.

        A look that fails for a moment is repeated: the caller would be told that nothing has happened. Where it fails
        again, the kernel has to ask anew, since it goes on believing what it knew (fs/fuse/dir.c fuse_do_setattr).

        Raises:
            OSError: of the layer.
        """
        try:
            return self._replies.attributes(inode)
        except OSError as error:
            log.warning("inode %d was changed, but could not be looked at: %s", inode.ino, error)
        try:
            return self._replies.attributes(inode)
        except OSError:
            self._attributes_changed(inode)
            raise

    async def _change(self, target: Inode, change: Change) -> None:
        """Make a change; one to a file of a lower together with its copy-up."""
        if not isinstance(target, File) or not await self._copy_ups.done(target, change):
            await patiently(lambda: self.union.setattr(target, change))

    def _mode_without_setgid(self, file: File, wanted: int | None, ctx: RequestContext) -> int | None:
        """The mode that a file gets when somebody changes its data; None when it keeps its own.

        Args:
            wanted: what the kernel asks for with the change: the mode without the set-user-ID bit, if it had one.
        """
        mode = self.union.stat(file)[0].st_mode
        if wanted is not None:
            mode = stat.S_IFMT(mode) | stat.S_IMODE(wanted)
        at_risk = setgid_is_at_risk(mode) and self._replies.is_outsider(file, ctx)
        return mode & ~stat.S_ISGID if at_risk else wanted

    @answered
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self.union.readlink(self._file(inode))

    # -- names -------------------------------------------------------------------------------------------------------

    @answered
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        directory = self.union.directory(parent_inode)
        return self._replies.told(self.union.mknod(directory, name, mode, rdev, self._replies.owner(ctx)))

    @answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        directory = self.union.directory(parent_inode)
        return self._replies.told(self.union.mkdir(directory, name, mode, self._replies.owner(ctx)))

    @answered
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        directory = self.union.directory(parent_inode)
        return self._replies.told(self.union.symlink(directory, name, target, self._replies.owner(ctx)))

    @answered
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        file = self._file(inode)
        await self._copy_ups.done(file)
        self.union.link(file, self.union.directory(new_parent_inode), new_name)
        self._attributes_after_change(file)
        return self._replies.told(file)

    @answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self.union.unlink(self.union.directory(parent_inode), name)

    @answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        with self._workers.long_operation():
            await in_steps(self.union.rmdir(self.union.directory(parent_inode), name))

    @answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        check_flags(flags)
        old = self.union.directory(parent_inode_old)
        new = self.union.directory(parent_inode_new)
        with self._workers.long_operation():
            if flags & pyfuse3.RENAME_EXCHANGE:
                await self._made_movable(new, name_new)
            else:
                target = self.union.lookup(new, name_new)
                if target is not None:
                    await self._prepared(self.union.make_replaceable(target))
            await self._made_movable(old, name_old)
        # The kernel holds both parents locked, so the names still mean what they meant.
        self.union.rename(old, name_old, new, name_new, flags)

    async def _made_movable(self, directory: Directory, name: bytes) -> None:
        """Copy up what is to be renamed, with all that is in it."""
        inode = self.union.existing(directory, name)
        self.union.complete_links(inode, directory, name)
        await self._prepared(self.union.make_movable(inode))

    async def _prepared(self, preparation: Generator[Sequence[File] | None, None, None]) -> None:
        """Prepare a rename, step by step."""
        pace = Pace()
        with closing(preparation):
            for files in preparation:
                await self._copy_ups.all_done(files or ())
                await pace.pause()

    # -- files -------------------------------------------------------------------------------------------------------

    @answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        file = self._file(inode)
        if flags & os.O_NONBLOCK:
            handle = self.union.open(file, flags)
        else:
            handle = await patiently(lambda: self.union.open(file, flags))
        try:
            # Before the change, since nothing may fail after it.
            outsider = bool(flags & os.O_TRUNC or handle.writable) and self._replies.is_outsider(file, ctx)
            if flags & os.O_TRUNC:
                # Whatever the access mode: the kernel has checked that the caller may write (fs/namei.c may_open).
                change = self.union.truncation(file, privileged=self._replies.keeps_set_id(ctx), outsider=outsider)
                await self._change(file, change)
                if change.mode is not None:
                    self._attributes_changed(file)
            handle.outsider = handle.writable and outsider
        except BaseException:
            self.union.release_file(handle)
            raise
        return FileInfo(fh=self._keep(handle), keep_cache=True)

    @answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        directory = self.union.directory(parent_inode)
        file, handle = self.union.create(directory, name, mode, self._replies.owner(ctx))
        return FileInfo(fh=self._keep(handle), keep_cache=True), self._replies.told(file)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._reader.read(self._file_handle(fh).fd, off, size)

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._file_handle(fh)
        if not handle.file.in_upper:
            await self._copy_ups.done(handle.file)
        if handle.outsider and self.union.drop_setgid(handle.file):
            self._attributes_changed(handle.file)
        return self.union.write(handle, buf, off)

    @staticmethod
    def _attributes_changed(inode: Inode) -> None:
        """Tell the kernel that attributes are others, where it does not think of asking: it remembers them apart
        (fs/fuse/inode.c fuse_change_attributes, inval_mask), and stat(1) asks for what it shows."""
        pyfuse3.invalidate_inode(pyfuse3.InodeT(inode.ino), attr_only=True)

    @answered
    async def flush(self, fh: int) -> None:
        # Nothing is buffered here; the kernel asks once and never again (fs/fuse/file.c fuse_flush).
        raise FUSEError(errno.ENOSYS)

    @answered
    async def release(self, fh: int) -> None:
        handle = self._file_handle(fh)
        del self._handles[fh]
        self.union.release_file(handle)

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        handle = self._file_handle(fh)
        if handle.file.in_upper and not self.union.settings.volatile:
            await self._workers.sync(os.fdatasync if datasync else os.fsync, handle.fd)
            await self._sync_ownership()

    # -- directories -------------------------------------------------------------------------------------------------

    @answered
    async def opendir(self, inode: int, ctx: RequestContext) -> pyfuse3.FileHandleT:
        return self._keep(self.union.opendir(self.union.directory(inode)))

    @answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        handle = self._directory_handle(fh)
        directory = handle.directory
        names = await in_steps(self.union.names(handle, again=start_id == 0))
        pace = Pace()
        position = start_id
        for offset, dots, special in ((0, b".", directory), (1, b"..", directory.parent or directory)):
            if start_id <= offset:
                if not pyfuse3.readdir_reply(token, dots, self._replies.attributes(special), offset + 1):
                    return
                position += 1
        for index in range(max(start_id - 2, 0), len(names)):
            try:
                sent = self._send_entry(directory, names[index], token, index + 3)
            except OSError:
                if position == start_id:
                    raise
                return  # what was sent counts; asked for the rest, it is the first thing to fail again
            if sent is Sent.NO_SPACE:
                return
            position += sent is Sent.DONE
            await pace.pause()

    def _send_entry(self, directory: Directory, name: bytes, token: pyfuse3.ReaddirToken, next_id: int) -> Sent:
        """Send one entry.

        Raises:
            OSError: the name cannot be looked up. Only what is hidden may be missing in a listing.
        """
        inode: Inode | None = None
        try:
            inode = self.union.lookup(directory, name)
            if inode is None:
                return Sent.NOTHING
            self.union.complete_links(inode, directory, name)  # the kernel will not ask for the name again
            entry = self._replies.attributes(inode)
        except OSError as error:
            if inode is not None:
                self.union.release(inode)
            if not isinstance(error, MalformedError):
                raise
            inode, st = self.union.unreadable(directory, name, error)
            entry = self._replies.unreadable(inode, st)
        if pyfuse3.readdir_reply(token, name, entry, next_id):
            self.union.remember(inode)
            self._retyped.pop(inode.ino, None)
            return Sent.DONE
        self.union.release(inode)
        return Sent.NO_SPACE

    @answered
    async def releasedir(self, fh: int) -> None:
        handle = self._directory_handle(fh)
        del self._handles[fh]
        self.union.release_directory(handle)

    @answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        handle = self._directory_handle(fh)
        fd = self.union.fsync_directory(handle.directory)
        if fd is not None:
            try:
                await self._workers.sync(os.fsync, fd)
            finally:
                os.close(fd)
            await self._sync_ownership()

    async def _sync_ownership(self) -> None:
        if self.union.stores_ownership:
            await self._workers.sync(self.union.sync_ownership)

    # -- the rest ----------------------------------------------------------------------------------------------------

    @answered
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        real = self.union.statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize = real.f_bsize
        data.f_frsize = real.f_frsize
        data.f_blocks = real.f_blocks
        data.f_bfree = real.f_bfree
        data.f_bavail = real.f_bavail
        data.f_files = real.f_files
        data.f_ffree = real.f_ffree
        data.f_favail = real.f_favail
        data.f_namemax = real.f_namemax
        return data

    @answered
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        if not self._own_root:
            # The kernel checks by itself (default_permissions) and does not ask again.
            raise FUSEError(errno.ENOSYS)
        st, _ = self.union.stat(self._inode(inode))
        # Root may do everything but execute what nobody may execute (fs/namei.c generic_permission).
        return not (mode & os.X_OK and stat.S_ISREG(st.st_mode) and not st.st_mode & 0o111)

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if inode == pyfuse3.ROOT_INODE:
            if name == PID_XATTR:
                return b"%d" % os.getpid()
            if name == SYNC_XATTR or (name == FSYNC_XATTR and not self.union.settings.volatile):
                await self._write_out()
                return b""
            if name == FSYNC_XATTR:
                return b""
            if name == COUNTS_XATTR:
                return b"%d %d" % (self.union.known, len(self._handles))
        return self.union.getxattr(self._inode(inode), name)

    async def _write_out(self) -> None:
        if not self.union.writable:
            return
        async with self._writing_out:
            await settle(self.device, self._workers)
            await self._workers.sync(self.union.sync)

    @answered
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        names = self.union.listxattr(self._inode(inode))
        if ctx.uid == 0:
            return names
        # The kernel leaves this to the filesystem (fs/xattr.c, listxattr(2): trusted.* is for CAP_SYS_ADMIN).
        return [name for name in names if not name.startswith(b"trusted.")]

    @answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        target = self._inode(inode)
        if self._own_root and name == OWNER_XATTR:
            await self._restate(target, value)
            return
        self.union.check_xattr_name(name)
        if isinstance(target, File):
            await self._copy_ups.done(target)
        outsider = name == xattr_names.POSIX_ACL_ACCESS and self._replies.is_outsider(target, ctx)
        self.union.setxattr(target, name, value)
        if outsider:
            self.union.drop_setgid(target, always=True)  # fs/posix_acl.c posix_acl_update_mode
        if name == xattr_names.POSIX_ACL_ACCESS and self._own_root:
            # Without FUSE_POSIX_ACL the kernel does not know that an ACL changes the mode.
            self._attributes_changed(target)

    async def _restate(self, target: Inode, value: bytes) -> None:
        """Set owner, mode and type at once.

        The kernel keeps the type of what it knows for ever, and a reply with another is an error (fs/fuse/dir.c
        fuse_do_getattr). So from here on every request that says the number is answered ESTALE: then the kernel looks
        the path up again (path_lookupat with LOOKUP_REVAL, by retry_estale in fs/namei.c), finds another type, and
        makes a new inode (fuse_dentry_revalidate, fuse_stale_inode). Only what has it open already sees the ESTALE.

        Nothing takes the names away: pyfuse3.invalidate_entry would wait for the lock of the directory. Who removes the
        name holds that and waits for the lock of the file, which the caller of setxattr(2) holds until it is answered.
        A thread that waits there outside of a handler would keep /dev/fuse open after a kill, and so keep everybody.
        """
        if isinstance(target, File):
            await self._copy_ups.done(target)
        if self.union.restate(target, value):
            self._retyped[target.ino] = target
        self._attributes_changed(target)

    @answered
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        target = self._inode(inode)
        if not self.union.xattr_is_there(target, name):
            return
        if isinstance(target, File):
            await self._copy_ups.done(target)
        self.union.removexattr(target, name)
