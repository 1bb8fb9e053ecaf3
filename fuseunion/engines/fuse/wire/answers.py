"""The handlers of requests that are read directly: from the numbers of a request to the bytes of its answer.

`_device.c` calls them by opcode, with the node first, and what each request holds after it. A handler gives bytes (the
body of the answer; for attributes a whole entry), an error number (0: done, nothing to say), or a coroutine that ends
with either.

The kernel was told that there is nothing to open, so files are named by their inode (files/open_files.py), and so are
directories (directories/listings.py). And it was told that set-ID bits and capabilities are taken away here
(FUSE_HANDLE_KILLPRIV_V2, include/uapi/linux/fuse.h): a capability by every write, truncation and chown; set-user-ID and
set-group-ID by a chown, and by a write or truncation of somebody without CAP_FSETID, which the request says.

What is asked of inodes and names is answered here, of the data of files in files/contents.py, of extended attributes in
xattrs.py.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from types import CoroutineType

from fuseunion.core.ids.identity import ShownGid, ShownUid
from fuseunion.core.ops.attributes import Change, without_privileges
from fuseunion.core.ops.copy_up.plain import Wish, wish
from fuseunion.core.ops.removing.plain import PlainRemoval
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.engines.fuse.asking.watching.causes import Cause
from fuseunion.engines.fuse.asking.watching.counts import Counts
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.serving.waiting.ahead import Ahead
from fuseunion.engines.fuse.serving.waiting.later import Later
from fuseunion.engines.fuse.serving.waiting.pace import now_or_in_steps
from fuseunion.engines.fuse.wire import layouts
from fuseunion.engines.fuse.wire.directories.listed import Listed
from fuseunion.engines.fuse.wire.directories.shared_directories import SharedDirectories
from fuseunion.engines.fuse.wire.entries import Entries, unkept
from fuseunion.engines.fuse.wire.files.contents import Contents
from fuseunion.engines.fuse.wire.files.open_files import OpenFiles
from fuseunion.engines.fuse.wire.native.device import compares, device
from fuseunion.engines.fuse.wire.results import Answer, Sender, done
from fuseunion.engines.fuse.wire.xattrs import Xattrs
from fuseunion.linux.os_error import os_error

log = logging.getLogger("fuseunion.fuse")

_DESCRIPTORS = 128
_CHANGES = (
    layouts.FATTR_MODE
    | layouts.FATTR_UID
    | layouts.FATTR_GID
    | layouts.FATTR_SIZE
    | layouts.FATTR_ATIME
    | layouts.FATTR_MTIME
)
_REFUSED = {
    layouts.OPEN: "open",
    layouts.OPENDIR: "opendir",
    layouts.CREATE: "create",
    layouts.FLUSH: "flush",
    layouts.RELEASE: "release",
    layouts.FSYNC: "fsync",
    layouts.FSYNCDIR: "fsyncdir",
}
"""What is refused where it has no handler, and what it is called."""


class Answers:
    """The handlers of one mount.

    Args:
        requests: what they do.
        timeout: how long the kernel may keep entries and attributes, in seconds.
    """

    def __init__(self, requests: Requests, timeout: float) -> None:
        self._requests = requests
        self._union = requests.union
        self._callers = requests.callers
        self._identity = self._union.settings.identity
        self._entries = Entries(self._union, timeout)
        shows_all = not requests.own_root
        self._open_files = OpenFiles(
            self._union, requests.reader, _DESCRIPTORS, shows_all=shows_all, lists_more=requests.lists_layers
        )
        self._contents = Contents(requests, self._open_files, self._entries)
        self._xattrs = Xattrs(requests, self._open_files)
        self._directories = SharedDirectories(requests, shows_all=shows_all)
        self._listed = Listed(requests, self._entries)
        requests.forget_layers = self._forget_layers
        requests.close_file = self._open_files.close
        assert device is not None
        requests.workers.elsewhere = device.waiting

    def handlers(self) -> dict[int, Callable[..., Answer | None]]:
        """The handlers by opcode; that of FORGET gives no answer."""
        handlers: dict[int, Callable[..., Answer | None]] = {
            layouts.LOOKUP: self._lookup,
            layouts.FORGET: self._forget,
            layouts.GETATTR: self._getattr,
            layouts.SETATTR: self._setattr,
            layouts.READLINK: self._readlink,
            layouts.SYMLINK: self._symlink,
            layouts.MKNOD: self._mknod,
            layouts.MKDIR: self._mkdir,
            layouts.TMPFILE: self._tmpfile,
            layouts.UNLINK: self._unlink,
            layouts.RMDIR: self._rmdir,
            layouts.RENAME: self._rename,
            layouts.RENAME2: self._rename,
            layouts.LINK: self._link,
            layouts.READ: self._contents.read,
            layouts.WRITE: self._contents.write,
            layouts.STATFS: self._statfs,
            layouts.GETXATTR: self._xattrs.getxattr,
            layouts.LISTXATTR: self._xattrs.listxattr,
            layouts.SETXATTR: self._xattrs.setxattr,
            layouts.REMOVEXATTR: self._xattrs.removexattr,
            layouts.READDIRPLUS: self._readdirplus,
            layouts.IOCTL: self._ioctl,
            layouts.FALLOCATE: self._contents.fallocate,
            layouts.LSEEK: self._contents.lseek,
            layouts.COPY_FILE_RANGE: self._contents.copy_file_range,
        }
        if self._requests.own_root:
            handlers[layouts.ACCESS] = self._access
        if self._union.syncs:
            handlers[layouts.FSYNC] = self._contents.fsync
            handlers[layouts.FSYNCDIR] = self._contents.fsyncdir
        return handlers

    def refusals(self) -> dict[int, int]:
        """What is answered with ENOSYS, by opcode, so that the kernel does not ask again: files need no opening,
        nothing is buffered here, and perhaps nothing waits for a disk (fs/fuse/file.c, dir.c)."""
        return dict.fromkeys(_REFUSED.keys() - self.handlers().keys(), errno.ENOSYS)

    def watch_with(self, counts: Callable[[], Counts], cause: Callable[[], Cause]) -> None:
        """Say who counts the requests, and who knows whose is being dealt with."""
        self._requests.counts = counts
        self._requests.copy_ups.log.cause = cause
        assert device is not None
        self._requests.busiest.watch = device.watch
        self._requests.busiest.take = device.busiest

    def sync_with(self, sync: Callable[[tuple[int, ...]], Awaitable[None]]) -> None:
        """Say who puts copies on disk."""
        self._requests.workers.syncing = sync

    def names(self) -> dict[int, str]:
        """What each kind of request is called, those included that are refused without a handler."""
        handled = {opcode: handler.__name__.removeprefix("_") for opcode, handler in self.handlers().items()}
        return {**_REFUSED, **handled, layouts.BATCH_FORGET: "forget"}

    @property
    def ahead(self) -> Ahead:
        """What is asked before a handler is called."""
        return self._requests.ahead

    @property
    def holds_files(self) -> bool:
        """True when a descriptor is kept for what may come next."""
        return bool(self._open_files) or bool(self._directories)

    def close_files(self) -> None:
        """Nobody has asked for anything for a while: keep nothing open."""
        self._open_files.close_all()
        self._directories.close()

    def _forget_layers(self) -> None:
        self._directories.close()
        self._listed.forget_all()

    @property
    def valid(self) -> tuple[int, int]:
        """How long the kernel may believe what it is told, in whole seconds and nanoseconds."""
        return self._entries.valid

    def changed(self, number: int) -> None:
        """A file was changed through the descriptor that was shared."""
        self._open_files.changed_alone(number)

    # -- inodes ------------------------------------------------------------------------------------------------------

    def _told(self, inode: Inode) -> bytes:
        """An answer that makes the kernel know the inode once more."""
        entry = self._entries.attributes(inode)
        self._requests.told(inode)
        return entry

    def _lookup(self, parent: int, name: bytes) -> bytes:
        directory = self._union.directory(parent)
        entry = self._listed.plain_entry(directory, name)
        if entry is not None:
            if self._requests.renewed is None:
                return entry
            self._requests.renewed.add((parent, name))
            return unkept(entry)
        inode = self._requests.lookup(parent, name)
        if self._requests.renewed is not None:
            self._requests.renewed.add((parent, name))
            return unkept(self._entries.negative if inode is None else self._told(inode))
        if inode is not None:
            return self._told(inode)
        self._directories.lacks_a_name(self._union.directory(parent))
        return self._entries.negative

    def _forget(self, number: int, nlookup: int) -> None:
        self._requests.forget(number, nlookup)
        self._open_files.forgotten(number)

    def _getattr(self, number: int) -> bytes:
        inode = self._requests.inode(number)
        if isinstance(inode, Directory):
            self._directories.looked_at(inode)
        return self._entries.attributes(inode)

    def _setattr(
        self,
        number: int,
        uid: int,
        gid: int,
        pid: int,
        valid: int,
        mode: int,
        new_uid: int,
        new_gid: int,
        size: int,
        atime_ns: int,
        mtime_ns: int,
    ) -> Answer:
        target = self._requests.inode(number)
        if not valid & _CHANGES and self._is_before_write(target, uid):
            return self._entries.attributes(target)
        if isinstance(target, File) and valid & _CHANGES and not (valid & layouts.FATTR_SIZE or target.in_upper):
            entry = self._copied_with(
                target,
                wish(
                    new_uid if valid & layouts.FATTR_UID else None,
                    new_gid if valid & layouts.FATTR_GID else None,
                    mode if valid & layouts.FATTR_MODE else None,
                    atime_ns if valid & layouts.FATTR_ATIME else None,
                    mtime_ns if valid & layouts.FATTR_MTIME else None,
                ),
            )
            if entry is not None:
                return entry
        sets_owner = valid & (layouts.FATTR_UID | layouts.FATTR_GID)
        change = Change(
            mode=mode if valid & layouts.FATTR_MODE else None,
            uid=self._identity.disk_uid(ShownUid(new_uid)) if valid & layouts.FATTR_UID else None,
            gid=self._identity.disk_gid(ShownGid(new_gid)) if valid & layouts.FATTR_GID else None,
            size=size if valid & layouts.FATTR_SIZE else None,
            atime_ns=atime_ns if valid & layouts.FATTR_ATIME else None,
            mtime_ns=mtime_ns if valid & layouts.FATTR_MTIME else None,
            # chown(2) with -1 for both ids asks for nothing but a new time of change (fs/open.c chown_common).
            touch=not valid & _CHANGES,
        )
        if isinstance(target, File):
            if valid & layouts.FATTR_MODE or sets_owner or change.touch or not target.in_upper:
                self._open_files.changed(number)
            if change.mode is None and (sets_owner or change.touch):
                change = self._ends_privileges(target, change, Sender(uid, gid, pid))
            elif valid & layouts.FATTR_SIZE and change.mode is None:
                caller = Sender(uid, gid, pid)
                truncation = self._truncation(target, size, valid, caller)
                change = change._replace(mode=truncation.mode, clear_capability=truncation.clear_capability)
        result = self._requests.change(target, change)
        if result is not None:
            return self._when_changed(result, target)
        return self._requests.look_after_change(target, self._entries)

    def _copied_with(self, file: File, wanted: Wish | None) -> bytes | None:
        """The entry of a file of a lower after a copy-up in one call, with what that is for; None where it takes more.

        Such a file has no set-ID bits and no capability that a change of its owner would take away.
        """
        copied = None if wanted is None else self._requests.copy_ups.plainly(file, wanted)
        if copied is None:
            return None
        entry, _ = copied
        if not entry:
            return self._requests.look_after_change(file, self._entries)
        if compares and entry != self._entries.attributes(file):
            log.error("inode %d was copied up and shows otherwise than was said", file.ino)
        file.reply = entry
        return entry

    def _is_before_write(self, target: Inode, uid: int) -> bool:
        """Whether a SETATTR of nothing is no chown(2) with -1 for both ids, but what the kernel sends before a write.

        It takes set-ID bits and capabilities away, and says nothing of them (fs/inode.c __remove_privs, fs/fuse/dir.c
        fuse_setattr); the WRITE then says it. The caller may be anybody, but a chown(2) that takes set-ID bits away
        is the owner's. Where it is the owner's write, to take them away now does no harm.
        """
        if target.ino == self._xattrs.lost_capability:
            self._xattrs.lost_capability = -1
            return True
        return isinstance(target, File) and uid not in (0, self._entries.owner(target)) and not self._requests.own_root

    async def _when_changed(self, result: Later[None], target: Inode) -> bytes:
        await result
        return self._requests.look_after_change(target, self._entries)

    def _truncation(self, file: File, size: int, valid: int, caller: Sender) -> Change:
        privileged = not valid & layouts.FATTR_KILL_SUIDGID
        outsider = self._callers.endangers_setgid(file, self._entries.mode(file), caller)
        return self._union.truncation(file, size, privileged=privileged and not outsider, outsider=outsider)

    def _ends_privileges(self, file: File, change: Change, caller: Sender) -> Change:
        """A chown(2) with what it takes from the mode of a file (fs/open.c chown_common)."""
        mode = self._entries.mode(file)
        if stat.S_ISLNK(mode) or not mode & (stat.S_ISUID | stat.S_ISGID):
            return change
        outsider = self._callers.endangers_setgid(file, mode, caller)
        left = without_privileges(mode, outsider=outsider)
        if left == stat.S_IMODE(mode):
            return change
        return change._replace(mode=left)

    def _ioctl(self, number: int, command: int, value: bytes, size: int) -> Answer:
        """Inode flags, which chattr(1) sets and lsattr(1) shows (fs/fuse/ioctl.c fuse_fileattr_get, fuse_fileattr_set).

        The kernel has checked who may set which.
        """
        target = self._requests.inode(number)
        if command in (layouts.FS_IOC_GETFLAGS, layouts.FS_IOC_FSGETXATTR):
            return layouts.IOCTL_OUT.pack(0) + self._union.flags(target, command, size)
        if command != layouts.FS_IOC_SETFLAGS:
            raise os_error(errno.ENOTTY)
        self._open_files.close(number)  # what may be written to now is asked anew
        result = self._requests.set_flags(target, command, value)
        return layouts.IOCTL_OUT.pack(0) if result is None else self._when_flags_set(result)

    async def _when_flags_set(self, result: Later[None]) -> bytes:
        await result
        return layouts.IOCTL_OUT.pack(0)

    def _readlink(self, number: int) -> bytes:
        return self._union.readlink(self._requests.file(number))

    def _access(self, number: int, mask: int) -> int:
        return 0 if self._requests.access(number, mask) else errno.EACCES

    def _statfs(self, _number: int) -> bytes:
        real = self._union.statfs()
        return layouts.STATFS_OUT.pack(
            real.f_blocks,
            real.f_bfree,
            real.f_bavail,
            real.f_files,
            real.f_ffree,
            real.f_bsize,
            real.f_namemax,
            real.f_frsize,
            0,
        )

    # -- names -------------------------------------------------------------------------------------------------------

    def _mknod(self, parent: int, uid: int, gid: int, pid: int, umask: int, mode: int, rdev: int, name: bytes) -> bytes:
        directory = self._union.directory(parent)
        owner = self._callers.owner(Sender(uid, gid, pid, umask))
        if not stat.S_ISREG(mode):
            return self._told(self._union.mknod(directory, name, mode, rdev, owner))
        # It is going to be written to.
        file, handle = self._open_files.retried(lambda: self._union.create(directory, name, mode, owner))
        self._open_files.share_new(self._open_files.keep(handle, readable=True), mode)
        self._directories.made_file(directory)
        return self._told(file)

    def made(self, parent: int, name: bytes, fd: int, device: int, number: int) -> int:
        """A file was made without asking, in a directory that is shared for it; or a directory, which has no descriptor
        (-1). Returns the number to show.

        Raises:
            OSError: ENFILE; it was taken away.
        """
        directory = self._union.directory(parent)
        if fd < 0:
            inode = self._union.take_over_directory(directory, name, (device, number))
            self._requests.told(inode)
            return inode.ino
        try:
            file, handle = self._open_files.retried(
                lambda: self._union.take_over(directory, name, fd, (device, number))
            )
        except OSError:
            os.close(fd)
            self._union.take_back(directory, name)
            raise
        self._open_files.share_new(self._open_files.keep(handle, readable=True), 0)
        self._requests.told(file)
        return file.ino

    def _tmpfile(self, parent: int, uid: int, gid: int, pid: int, umask: int, mode: int) -> bytes:
        directory = self._union.directory(parent)
        owner = self._callers.owner(Sender(uid, gid, pid, umask))
        file, handle = self._open_files.retried(lambda: self._union.tmpfile(directory, mode, owner))
        self._open_files.share_new(self._open_files.keep(handle, readable=True), mode)
        return self._told(file) + layouts.OPENED.pack()

    def _mkdir(self, parent: int, uid: int, gid: int, pid: int, umask: int, mode: int, name: bytes) -> bytes:
        directory = self._union.directory(parent)
        made = self._union.mkdir(directory, name, mode, self._callers.owner(Sender(uid, gid, pid, umask)))
        self._directories.made_file(directory)
        return self._told(made)

    def _symlink(self, parent: int, uid: int, gid: int, pid: int, name: bytes, target: bytes) -> bytes:
        owner = self._callers.owner(Sender(uid, gid, pid))
        return self._told(self._union.symlink(self._union.directory(parent), name, target, owner))

    def _link(self, parent: int, number: int, name: bytes) -> Answer:
        result = self._requests.link(number, parent, name)
        return self._when_linked(result) if isinstance(result, CoroutineType) else self._linked(result)  # type: ignore[arg-type]

    async def _when_linked(self, result: Later[File]) -> bytes:
        return self._linked(await result)

    def _linked(self, file: File) -> bytes:
        self._requests.look_after_change(file, self._entries)
        return self._told(file)

    def _unlink(self, parent: int, name: bytes) -> int:
        directory = self._union.directory(parent)
        if not self._removed_plainly(directory, name, self._union.plain_removal(directory, name)):
            self._requests.unlink(parent, name)
        return 0

    def _rmdir(self, parent: int, name: bytes) -> Answer:
        directory = self._union.directory(parent)
        if self._removed_plainly(directory, name, self._union.plain_removal_of_directory(directory, name)):
            return 0
        return done(self._requests.rmdir(parent, name))

    def _removed_plainly(self, directory: Directory, name: bytes, plain: PlainRemoval | None) -> bool:
        """Remove a name in one call, if it is that simple."""
        if plain is None:
            return False
        assert device is not None
        held = device.remove_plain(*plain)
        if held is None:
            return False
        self._union.plainly_removed(directory, name, held)
        return True

    def _rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> Answer:
        return done(self._requests.rename(parent, name, new_parent, new_name, flags))

    def _readdirplus(self, number: int, position: int, size: int) -> Answer:
        directory = self._union.directory(number)
        try:
            return now_or_in_steps(self._listed.entries(directory, position, size))
        except OSError as error:
            if error.errno == errno.ESTALE:
                # Nobody opens a directory here, where ESTALE would make the kernel look its path up again. It does so
                # when it asks for attributes.
                directory.stale()
                self._requests.attributes_changed(directory)
            raise
