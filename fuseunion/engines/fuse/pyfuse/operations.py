"""The pyfuse3 adapter: how requests and answers are written down there; requests.py does what they ask for.

One errno boundary is around every handler (boundary.py). Open files have numbers here.
"""

from __future__ import annotations

import enum
import errno
import itertools
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from fuseunion.core.ids.identity import ShownGid, ShownUid
from fuseunion.core.ops.attributes import Change
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.handle import DirectoryHandle, FileHandle, Handle
from fuseunion.core.tree.inode import Inode
from fuseunion.engines.fuse.asking.watching.causes import CAUSE, Cause
from fuseunion.engines.fuse.asking.watching.counts import Counts, Histogram
from fuseunion.engines.fuse.pyfuse.boundary import answered
from fuseunion.engines.fuse.pyfuse.replies import Replies, Unkept
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.serving.waiting.ahead import Question
from fuseunion.engines.fuse.serving.waiting.later import ended
from fuseunion.engines.fuse.serving.waiting.pace import Pace, in_steps
from fuseunion.linux.os_error import os_error

_BY_HANDLE = frozenset({"read", "write", "flush", "release", "fsync", "readdir", "releasedir", "fsyncdir"})
"""Requests that say an open file, and not an inode."""

_MOST_BUSY = 1000
"""Inodes that are counted between two looks."""


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
        requests: what they do.
        timeout: how long the kernel may keep entries and attributes, in seconds.
        trace: log each request.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, requests: Requests, *, timeout: float = 1e9, trace: bool = False) -> None:
        super().__init__()
        self.trace = trace
        self._requests = requests
        self._union = requests.union
        # FUSE_POSIX_ACL would switch the kernel's permission checks on again (fs/fuse/inode.c process_init_reply).
        self.enable_acl = self._union.settings.acl and not requests.own_root
        self._identity = self._union.settings.identity
        self._callers = requests.callers
        self._replies = Replies(self._union, timeout)
        self._unkept = Unkept(self._replies)
        self._handles: dict[int, Handle] = {}
        self._openers: dict[int, int] = {}  # who opened what is copied up when it is written: a write does not say
        self._next_fh = itertools.count(1)
        self.requests: Counter[str] = Counter()
        self.errors: Counter[int] = Counter()
        requests.count_open = lambda: len(self._handles)
        self.ahead = requests.ahead
        self.histograms: defaultdict[str, Histogram] = defaultdict(Histogram)
        requests.counts = self._counts
        self.busy: Counter[int] | None = None
        requests.busiest.watch = self._watch
        requests.busiest.take = self._take_busiest

    def _watch(self, on: bool) -> None:
        self.busy = Counter() if on else None

    def _take_busiest(self) -> Counter[int]:
        taken, self.busy = self.busy, Counter()
        return taken or Counter()

    def question(self, name: str, arguments: tuple[object, ...]) -> Question | None:
        """See Traced."""
        if not self.ahead.needed:
            return None
        if name in _BY_HANDLE and isinstance(arguments[0], int):
            handle = self._handles.get(arguments[0])
            # What is open is read without asking for anything else; a write may have to copy up.
            if name != "write" or not isinstance(handle, FileHandle):
                return None
            arguments = (handle.file.ino, *arguments[1:])
        return self.ahead.question(name, arguments)

    def note_busy(self, name: str, number: int) -> None:
        """See Traced."""
        assert self.busy is not None
        if name in _BY_HANDLE:
            handle = self._handles.get(number)
            if isinstance(handle, FileHandle):
                self.busy[handle.file.ino] += 1
            elif isinstance(handle, DirectoryHandle):
                self.busy[handle.directory.ino] += 1
        elif len(self.busy) < _MOST_BUSY or number in self.busy:
            self.busy[number] += 1

    def _counts(self) -> Counts:
        durations = {name: histogram.durations() for name, histogram in self.histograms.items()}
        return Counts(self.requests, self.errors, {}, durations)

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

    def _told(self, inode: Inode) -> EntryAttributes:
        """A reply that makes the kernel know the inode once more."""
        entry = self._replies.attributes(inode)
        self._requests.told(inode)
        return entry

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        inode = self._requests.lookup(parent_inode, name)
        if self._requests.renewed is not None:
            self._requests.renewed.add((parent_inode, name))
            if inode is None:
                raise os_error(errno.ENOENT)  # which the kernel does not remember
            entry = self._unkept.attributes(inode)
            self._requests.told(inode)
            return entry
        return self._replies.negative if inode is None else self._told(inode)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        # Not `answered`: forget has no reply, and pyfuse3 would let even a FUSEError end the mount.
        self.requests["forget"] += len(inode_list)
        for ino, nlookup in inode_list:
            self._requests.forget(ino, nlookup)

    @answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._replies.attributes(self._requests.inode(inode))

    @answered
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        CAUSE.set(Cause("setattr", ctx.pid))
        target = self._requests.inode(inode)
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
        await ended(self._requests.change(target, change))
        return self._requests.look_after_change(target, self._replies)

    def _mode_without_setgid(self, file: File, wanted: int | None, ctx: RequestContext) -> int | None:
        """The mode that a file gets when somebody changes its data; None when it keeps its own.

        Args:
            wanted: what the kernel asks for with the change: the mode without the set-user-ID bit, if it had one.
        """
        mode = self._union.stat(file)[0].st_mode
        if wanted is not None:
            mode = stat.S_IFMT(mode) | stat.S_IMODE(wanted)
        at_risk = self._callers.endangers_setgid(file, mode, ctx)
        return mode & ~stat.S_ISGID if at_risk else wanted

    @answered
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self._union.readlink(self._requests.file(inode))

    # -- names -------------------------------------------------------------------------------------------------------

    @answered
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        directory = self._union.directory(parent_inode)
        return self._told(self._union.mknod(directory, name, mode, rdev, self._callers.owner(ctx)))

    @answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        directory = self._union.directory(parent_inode)
        return self._told(self._union.mkdir(directory, name, mode, self._callers.owner(ctx)))

    @answered
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        directory = self._union.directory(parent_inode)
        return self._told(self._union.symlink(directory, name, target, self._callers.owner(ctx)))

    @answered
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        CAUSE.set(Cause("link", ctx.pid))
        file = await ended(self._requests.link(inode, new_parent_inode, new_name))
        self._requests.look_after_change(file, self._replies)
        return self._told(file)

    @answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._requests.unlink(parent_inode, name)

    @answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await ended(self._requests.rmdir(parent_inode, name))

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
        CAUSE.set(Cause("rename", ctx.pid))
        await ended(self._requests.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags))

    # -- files -------------------------------------------------------------------------------------------------------

    @answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        CAUSE.set(Cause("open", ctx.pid))
        file = self._requests.file(inode)
        handle = await self._opened(file, flags, ctx)
        try:
            # Before the change, since nothing may fail after it.
            outsider = bool(flags & os.O_TRUNC or handle.writable) and self._callers.is_outsider(file, ctx)
            if flags & os.O_TRUNC:
                # Whatever the access mode: the kernel has checked that the caller may write (fs/namei.c may_open).
                privileged = self._callers.keeps_set_id(ctx)
                change = self._union.truncation(file, 0, privileged=privileged, outsider=outsider)
                await ended(self._requests.change(file, change))
                if change.mode is not None:
                    self._requests.attributes_changed(file)
            handle.outsider = handle.writable and outsider
        except BaseException:
            self._union.release_file(handle)
            raise
        fh = self._keep(handle)
        if handle.writable and not file.in_upper:
            self._openers[fh] = ctx.pid
        return FileInfo(fh=fh, keep_cache=True)

    async def _opened(self, file: File, flags: int, ctx: RequestContext) -> FileHandle:
        try:
            return await ended(self._requests.open(file, flags))
        except PermissionError as error:
            if error.errno != errno.EACCES or file.in_upper or flags & os.O_ACCMODE == os.O_RDONLY:
                raise
        # A file of a lower that may not be read: it can be copied up if it is empty, or is to be.
        if flags & os.O_TRUNC:
            outsider, privileged = self._callers.is_outsider(file, ctx), self._callers.keeps_set_id(ctx)
            change = self._union.truncation(file, 0, privileged=privileged, outsider=outsider)
            await ended(self._requests.change(file, change))
        else:
            await self._requests.copy_ups.done(file)
        return await ended(self._requests.open(file, flags))

    @answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        directory = self._union.directory(parent_inode)
        file, handle = self._union.create(directory, name, mode, self._callers.owner(ctx))
        return FileInfo(fh=self._keep(handle), keep_cache=True), self._told(file)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await ended(self._requests.reader.read(self._file_handle(fh).fd, off, size))

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._file_handle(fh)
        if not handle.file.in_upper:
            CAUSE.set(Cause("write", self._openers.get(fh, 0)))
            await self._requests.copy_ups.done(handle.file)
        if handle.outsider and self._union.drop_setgid(handle.file):
            self._requests.attributes_changed(handle.file)
        return self._union.write(handle, buf, off)

    @answered
    async def flush(self, fh: int) -> None:
        # Nothing is buffered here; the kernel asks once and never again (fs/fuse/file.c fuse_flush).
        raise FUSEError(errno.ENOSYS)

    @answered
    async def release(self, fh: int) -> None:
        handle = self._file_handle(fh)
        del self._handles[fh]
        self._openers.pop(fh, None)
        self._union.release_file(handle)

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        handle = self._file_handle(fh)
        self._check_sync()
        await ended(self._requests.fsync(handle.file, handle.fd, data_only=datasync))

    # -- directories -------------------------------------------------------------------------------------------------

    @answered
    async def opendir(self, inode: int, ctx: RequestContext) -> pyfuse3.FileHandleT:
        return self._keep(self._union.opendir(self._union.directory(inode)))

    @answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        handle = self._directory_handle(fh)
        listing = object()
        self._requests.listings.add(listing)
        try:
            await self._list(handle, start_id, token)
        finally:
            self._requests.listings.discard(listing)

    async def _list(self, handle: DirectoryHandle, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory, renewed = handle.directory, self._requests.renewed
        names = await in_steps(self._union.names(handle, again=start_id == 0))
        pace = Pace()
        position = start_id
        for offset, dots, special in ((0, b".", directory), (1, b"..", directory.parent or directory)):
            if start_id <= offset:
                if not pyfuse3.readdir_reply(token, dots, self._replies.attributes(special), offset + 1):
                    return
                position += 1
        for index in range(max(start_id - 2, 0), len(names)):
            try:
                sent = self._send_entry(directory, names[index], token, index + 3, renewed)
            except OSError:
                if position == start_id:
                    raise
                return  # what was sent counts; asked for the rest, it is the first thing to fail again
            if sent is Sent.NO_SPACE:
                return
            position += sent is Sent.DONE
            await pace.pause()

    def _send_entry(
        self,
        directory: Directory,
        name: bytes,
        token: pyfuse3.ReaddirToken,
        next_id: int,
        renewed: set[tuple[int, bytes]] | None,
    ) -> Sent:
        """Send one entry. Raises as Requests.listed.

        Args:
            renewed: of Requests, when the listing began.
        """
        if renewed is not None:
            renewed.add((directory.ino, name))
        listed = self._requests.listed(directory, name, self._replies if renewed is None else self._unkept)
        if listed is None:
            return Sent.NOTHING
        inode, entry = listed
        if pyfuse3.readdir_reply(token, name, entry, next_id):
            self._requests.told(inode)
            return Sent.DONE
        self._union.release(inode)
        return Sent.NO_SPACE

    @answered
    async def releasedir(self, fh: int) -> None:
        handle = self._directory_handle(fh)
        del self._handles[fh]
        self._union.release_directory(handle)

    @answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        handle = self._directory_handle(fh)
        self._check_sync()
        await ended(self._requests.fsync_directory(handle.directory))

    def _check_sync(self) -> None:
        """ENOSYS where nothing waits for a disk: the kernel does not ask again (fs/fuse/file.c fuse_fsync)."""
        if not self._union.syncs:
            raise FUSEError(errno.ENOSYS)

    # -- the rest ----------------------------------------------------------------------------------------------------

    @answered
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        real = self._union.statfs()
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
        if not self._requests.own_root:
            # The kernel checks by itself (default_permissions) and does not ask again.
            raise FUSEError(errno.ENOSYS)
        return self._requests.access(inode, mode)

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return await ended(self._requests.getxattr(inode, name))

    @answered
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        return self._requests.listxattr(inode, ctx.uid)

    @answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        CAUSE.set(Cause("setxattr", ctx.pid))
        await ended(self._requests.setxattr(inode, name, value, ctx))

    @answered
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        CAUSE.set(Cause("removexattr", ctx.pid))
        await ended(self._requests.removexattr(inode, name))
