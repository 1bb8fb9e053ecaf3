"""The handlers of requests that are read directly: from the numbers of a request to the bytes of its answer.

`_device.c` calls them by opcode, with the node first, and what each request holds after it. A handler gives bytes (the
body of the answer; for attributes a whole entry), an error number (0: done, nothing to say), or a coroutine that ends
with either.

The kernel was told that there is nothing to open, so files are named by their inode (open_files.py), and so are
directories (listing/listings.py). And it was told that set-ID bits and capabilities are taken away here
(FUSE_HANDLE_KILLPRIV_V2, include/uapi/linux/fuse.h): a capability by every write, truncation and chown; set-user-ID and
set-group-ID by a chown, and by a write or truncation of somebody without CAP_FSETID, which the request says.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from types import CoroutineType
from typing import NamedTuple, TypeVar

from fuseunion.core.format import xattr_names
from fuseunion.core.ids.identity import ShownGid, ShownUid
from fuseunion.core.ops.attributes import Change, without_privileges
from fuseunion.core.ops.copy_up.plain import NOTHING, Wish, wish
from fuseunion.core.ops.removing.plain import PlainRemoval
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.engines.fuse.asking.watching.causes import Cause
from fuseunion.engines.fuse.asking.watching.counts import Counts
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.serving.waiting.ahead import Ahead
from fuseunion.engines.fuse.serving.waiting.later import Later, ended, now_or_patiently
from fuseunion.engines.fuse.serving.waiting.pace import now_or_in_steps
from fuseunion.engines.fuse.wire import layouts
from fuseunion.engines.fuse.wire.entries import Entries, remembered, unkept
from fuseunion.engines.fuse.wire.listing.listed import Listed
from fuseunion.engines.fuse.wire.native.device import compares, device
from fuseunion.engines.fuse.wire.open_files import OpenFile, OpenFiles
from fuseunion.engines.fuse.wire.shared_directories import SharedDirectories
from fuseunion.engines.fuse.wire.xattrs import Xattrs
from fuseunion.linux import syscalls
from fuseunion.linux.os_error import os_error

log = logging.getLogger("fuseunion.fuse")

T = TypeVar("T")


_DESCRIPTORS = 128
_CHANGES = (
    layouts.FATTR_MODE
    | layouts.FATTR_UID
    | layouts.FATTR_GID
    | layouts.FATTR_SIZE
    | layouts.FATTR_ATIME
    | layouts.FATTR_MTIME
)
_SMALL_RANGE = 64 << 10
"""Bytes of a copy_file_range that is made at once, from what is in memory."""

_MOST_AT_ONCE = 64 << 20
"""Bytes of one copy_file_range, or of an fallocate in the loop: so long as others can wait for the thread."""


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


class Sender(NamedTuple):
    """Who made a request (callers.Caller)."""

    uid: int
    gid: int
    pid: int
    umask: int = 0


class Wanted(NamedTuple):
    """A read that waits for a disk: a thread of the module makes it, answers it, and closes the descriptor."""

    fd: int
    offset: int
    size: int


class ToSync(NamedTuple):
    """What fsync(2) has to wait for: as of Wanted."""

    fd: int
    data_only: bool


Read = bytes | Wanted
Final = Read | int | ToSync
Answer = Final | Later[Final]


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
            layouts.READ: self._read,
            layouts.WRITE: self._write,
            layouts.STATFS: self._statfs,
            layouts.GETXATTR: self._xattrs.get,
            layouts.LISTXATTR: self._xattrs.names,
            layouts.SETXATTR: self._setxattr,
            layouts.REMOVEXATTR: self._removexattr,
            layouts.READDIRPLUS: self._readdirplus,
            layouts.IOCTL: self._ioctl,
            layouts.FALLOCATE: self._fallocate,
            layouts.LSEEK: self._lseek,
            layouts.COPY_FILE_RANGE: self._copy_file_range,
        }
        if self._requests.own_root:
            handlers[layouts.ACCESS] = self._access
        if self._union.syncs:
            handlers[layouts.FSYNC] = self._fsync
            handlers[layouts.FSYNCDIR] = self._fsyncdir
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
        return isinstance(target, File) and uid not in (0, self._owner(target)) and not self._requests.own_root

    async def _when_changed(self, result: Later[None], target: Inode) -> bytes:
        await result
        return self._requests.look_after_change(target, self._entries)

    def _truncation(self, file: File, size: int, valid: int, caller: Sender) -> Change:
        privileged = not valid & layouts.FATTR_KILL_SUIDGID
        outsider = self._callers.endangers_setgid(file, self._mode(file), caller)
        return self._union.truncation(file, size, privileged=privileged and not outsider, outsider=outsider)

    def _ends_privileges(self, file: File, change: Change, caller: Sender) -> Change:
        """A chown(2) with what it takes from the mode of a file (fs/open.c chown_common)."""
        mode = self._mode(file)
        if stat.S_ISLNK(mode) or not mode & (stat.S_ISUID | stat.S_ISGID):
            return change
        outsider = self._callers.endangers_setgid(file, mode, caller)
        left = without_privileges(mode, outsider=outsider)
        if left == stat.S_IMODE(mode):
            return change
        return change._replace(mode=left)

    def _mode(self, inode: Inode) -> int:
        return layouts.ENTRY.unpack(self._entries.attributes(inode))[layouts.MODE]  # type: ignore[no-any-return]

    def _owner(self, inode: Inode) -> int:
        return layouts.ENTRY.unpack(self._entries.attributes(inode))[layouts.UID]  # type: ignore[no-any-return]

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
        return _done(self._requests.rmdir(parent, name))

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
        return _done(self._requests.rename(parent, name, new_parent, new_name, flags))

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

    # -- data --------------------------------------------------------------------------------------------------------

    def _read(self, number: int, offset: int, size: int) -> Answer:
        file = self._requests.file(number)
        if not offset and number not in self._open_files and not self.ahead.lies_far(number):
            whole = self._read_whole(file, size)
            if whole is not None:
                return whole
        return self._opened(file, lambda opened: self._read_from(opened, offset, size))

    def _read_from(self, opened: OpenFile, offset: int, size: int) -> Read | Later[bytes]:
        data = self._requests.reader.at_once(opened.handle.fd, offset, size)
        self._open_files.share_for_reading(opened)
        if data is not None:
            return bytes(data)
        try:
            return Wanted(os.dup(opened.handle.fd), offset, size)
        except OSError:  # no descriptor is left: then it waits for this one
            call = self._requests.workers.read(os.pread, opened.handle.fd, size, offset)
            return _while(opened.used(), call)

    def _opened(self, file: File, call: Callable[[OpenFile], T | Later[T]]) -> T | Later[T]:
        """Make a call with a file that was opened for reading, as soon as nobody has a lease on it."""
        if file.ino not in self._open_files and self.ahead.lies_far(file.ino):
            return self._when_opened(self._opened_ahead(file), call)
        opened = now_or_patiently(lambda: self._open_files.reading(file))
        return call(opened) if isinstance(opened, OpenFile) else self._when_opened(opened, call)

    async def _opened_ahead(self, file: File) -> OpenFile:
        """A file of a layer that may not answer, which a thread opens; the loop, where what it opened is another."""
        fd = await self.ahead.opened(file.ino)
        opened = None
        if fd is not None:
            with suppress(OSError):
                opened = self._open_files.take(file, fd)
            if opened is None:
                self._requests.workers.close(fd)
        return opened if opened is not None else await ended(now_or_patiently(lambda: self._open_files.reading(file)))

    async def _when_opened(self, opening: Later[OpenFile], call: Callable[[OpenFile], T | Later[T]]) -> T:
        opened = await opening
        with opened.used():
            return await ended(call(opened))

    def _read_whole(self, file: File, most: int) -> Read | None:
        """All of a small file, which nobody is going to ask for again; None where more has to be said or done."""
        try:
            place = self._union.place_to_open(file)
            if place is not None:
                assert device is not None
                shown = file.ino if self._union.shows_lower_as_it_is(file) else 0
                found = device.read_plain(*place, most, self._requests.reader.may_wait(place[2]), shown)
                if shown:
                    remembered(file)
                if found is not None:
                    return self._read_small(found, most) if isinstance(found, int) else found
            fd = self._union.open_for_a_moment(file)
        except OSError:
            return None
        return self._read_small(fd, most)

    def _read_small(self, fd: int, most: int) -> Read | None:
        """As `_read_whole`, of an open file, which is closed."""
        with ExitStack() as closing:
            closing.callback(os.close, fd)
            size = os.fstat(fd).st_size
            if size >= most:
                return None
            data = self._requests.reader.at_once(fd, 0, size)
            if data is not None:
                return bytes(data)
            closing.pop_all()
            return Wanted(fd, 0, most)

    def _write(self, number: int, uid: int, gid: int, pid: int, flags: int, offset: int, data: bytes) -> Answer:
        file = self._requests.file(number)
        if not file.in_upper:
            opened = self._opened_copy(file)
            if opened is not None:
                return layouts.WRITTEN.pack(self._union.write(opened.handle, data, offset), 0)
        return self._with_copy(file, lambda opened: self._write_to(opened, Sender(uid, gid, pid), flags, offset, data))

    def _opened_copy(self, file: File) -> OpenFile | None:
        """A file of a lower after a copy-up in one call, open for what is written next; None where it takes more.

        Such a file has nothing that a write takes away.
        """
        copied = self._requests.copy_ups.plainly(file, NOTHING, keeps=True)
        if copied is None:
            return None
        try:
            handle = self._open_files.retried(lambda: self._union.opened(file, copied[1], writable=True))
        except OSError:
            os.close(copied[1])
            return None
        opened = self._open_files.keep(handle)
        self._open_files.share_new(opened, 0)
        return opened

    def _write_to(self, opened: OpenFile, sender: Sender, flags: int, offset: int, data: bytes) -> bytes:
        if not opened.plain:
            self._data_changes(opened, sender, kills=bool(flags & layouts.WRITE_KILL_SUIDGID))
        self._open_files.share_for_writing(opened)
        return layouts.WRITTEN.pack(self._union.write(opened.handle, data, offset), 0)

    def _with_copy(self, file: File, call: Callable[[OpenFile], T]) -> T | Later[T]:
        """Make a call with a file that was opened for writing, after it was copied up."""
        if file.in_upper or self._requests.copy_ups.now(file) is not None:
            try:
                return call(self._open_files.writing(file))
            except BlockingIOError:
                pass  # somebody has a lease on it
        return self._with_copy_later(file, call)

    async def _with_copy_later(self, file: File, call: Callable[[OpenFile], T]) -> T:
        await self._requests.copy_ups.done(file)
        return call(await ended(now_or_patiently(lambda: self._open_files.writing(file))))

    def _data_changes(self, opened: OpenFile, caller: Sender, *, kills: bool) -> None:
        """Before the data of a file changes: take away what that takes away (fs/inode.c file_remove_privs).

        A real capability goes with the real write. One that is stored is not known to the upper's filesystem.
        """
        file = opened.handle.file
        mode = self._mode(file)
        if mode & (stat.S_ISUID | stat.S_ISGID):
            outsider = self._callers.endangers_setgid(file, mode, caller)
            left = without_privileges(mode, outsider=outsider) if kills or outsider else stat.S_IMODE(mode)
            if left != stat.S_IMODE(mode):
                self._union.setattr(file, Change(mode=left, clear_capability=True))
                self._requests.attributes_changed(file)
        elif self._union.stores_ownership and self._requests.has_xattr(file, xattr_names.CAPABILITY):
            self._union.setattr(file, Change(clear_capability=True))
        else:
            opened.plain = True

    def _fsync(self, number: int, data_only: bool) -> Answer:
        return self._opened(self._requests.file(number), lambda opened: self._sync(opened, data_only))

    def _sync(self, opened: OpenFile, data_only: bool) -> Answer:
        handle = opened.handle
        if handle.file.in_upper and not self._union.stores_ownership:
            with suppress(OSError):  # no descriptor is left: then it waits for this one
                return ToSync(os.dup(handle.fd), data_only)
        result = self._requests.fsync(handle.file, handle.fd, data_only=data_only)
        return 0 if result is None else _zero(_while(opened.used(), result))

    def _fsyncdir(self, number: int, _data_only: bool) -> Answer:
        directory = self._union.directory(number)
        if self._union.stores_ownership:
            return _done(self._requests.fsync_directory(directory))
        fd = self._union.fsync_directory(directory)
        return 0 if fd is None else ToSync(fd, False)

    def _lseek(self, number: int, offset: int, whence: int) -> Answer:
        def seek(opened: OpenFile) -> bytes:
            return layouts.OFFSET.pack(os.lseek(opened.handle.fd, offset, whence))

        return self._opened(self._requests.file(number), seek)

    def _fallocate(self, number: int, uid: int, gid: int, pid: int, offset: int, length: int, mode: int) -> Answer:
        file = self._requests.file(number)
        sender = Sender(uid, gid, pid)
        if length > _MOST_AT_ONCE:
            return self._allocate_much(file, offset, length, mode, sender)

        def allocate(opened: OpenFile) -> int:
            self._will_allocate(opened, sender)
            syscalls.fallocate(opened.handle.fd, mode, offset, length)
            return 0

        return self._with_copy(file, allocate)

    def _will_allocate(self, opened: OpenFile, sender: Sender) -> None:
        # The request does not say who may keep set-ID bits (fs/fuse/file.c fuse_file_fallocate).
        self._data_changes(opened, sender, kills=not self._callers.keeps_set_id(sender))
        opened.handle.file.stale()

    async def _allocate_much(self, file: File, offset: int, length: int, mode: int, sender: Sender) -> int:
        """What a filesystem in memory takes long for, since it clears each page."""
        await self._requests.copy_ups.done(file)
        opened = await ended(now_or_patiently(lambda: self._open_files.writing(file)))
        with opened.used():
            self._will_allocate(opened, sender)
            await self._requests.workers.read(syscalls.fallocate, opened.handle.fd, mode, offset, length)
            file.stale()
        return 0

    def _copy_file_range(
        self, number: int, uid: int, gid: int, pid: int, offset: int, target: int, target_offset: int, length: int
    ) -> Answer:
        source, file = self._requests.file(number), self._requests.file(target)
        sender = Sender(uid, gid, pid)
        copied = self._copy_small_range(source, offset, file, target_offset, length, sender)
        if copied is not None:
            return layouts.WRITTEN.pack(copied, 0)
        return self._copy_range(source, offset, file, target_offset, min(length, _MOST_AT_ONCE), sender)

    def _copy_small_range(
        self, source: File, offset: int, file: File, target_offset: int, length: int, caller: Sender
    ) -> int | None:
        """Copy what takes no longer than a usual request; None for all else."""
        if not file.in_upper:
            return None
        try:
            target = self._open_files.writing(file)
            target.use()  # to open the other may close it, above all where both are one file
            try:
                origin = self._open_files.reading(source)
                fd = origin.handle.fd
                length = min(length, max(os.fstat(fd).st_size - offset, 0))
                if length > _SMALL_RANGE:
                    return None
                self._open_files.share_for_reading(origin)
                if length and not origin.never_waits and self._requests.reader.would_wait(fd, length, offset):
                    return None
                if not target.plain:
                    self._data_changes(target, caller, kills=not self._callers.keeps_set_id(caller))
                file.stale()
                return os.copy_file_range(fd, target.handle.fd, length, offset, target_offset) if length else 0
            finally:
                target.release()
        except BlockingIOError:
            return None  # somebody has a lease

    async def _copy_range(
        self, source: File, offset: int, file: File, target_offset: int, length: int, caller: Sender
    ) -> bytes:
        await self._requests.copy_ups.done(file)
        target = await ended(now_or_patiently(lambda: self._open_files.writing(file)))
        with target.used():
            origin = await ended(now_or_patiently(lambda: self._open_files.reading(source)))
            with origin.used():
                self._data_changes(target, caller, kills=not self._callers.keeps_set_id(caller))
                file.stale()
                copied = await self._requests.workers.read(
                    os.copy_file_range, origin.handle.fd, target.handle.fd, length, offset, target_offset
                )
                file.stale()
        return layouts.WRITTEN.pack(copied, 0)

    # -- extended attributes -----------------------------------------------------------------------------------------

    def _setxattr(self, number: int, uid: int, gid: int, pid: int, name: bytes, value: bytes, flags: int) -> Answer:
        return _done(self._xattrs.set(number, name, value, flags, Sender(uid, gid, pid)))

    def _removexattr(self, number: int, name: bytes) -> Answer:
        return _done(self._xattrs.remove(number, name))


def _done(result: Later[None] | None) -> int | Later[int]:
    """An answer without a body, once it is done."""
    return 0 if result is None else _zero(result)


async def _while(used: ExitStack, result: Later[T]) -> T:
    """A result for which something is used, which the caller has begun."""
    with used:
        return await result


async def _zero(result: Later[None]) -> int:
    await result
    return 0
