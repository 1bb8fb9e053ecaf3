"""What each request does, whichever way it came: checks, waits and calls of the core; the core decides.

Two adapters stand above: the package `pyfuse`, for requests that come through pyfuse3, and the package `wire`, for
those that are read from /dev/fuse directly. They differ in how a request is written down and how an open file is named.

Three rules keep the mount alive and right:

* One errno boundary around every handler, in each adapter.
* Between a check and the change that it allows there is no `await`. What may wait (bytes of a copy-up, fsync, a read
  that is not cached) goes to a worker thread, which gets descriptors and nothing else.
* One copy-up at a time for each file (copy_ups.py).

Results are given at once or later (waiting/later.py). All calls raise OSError, and nothing else that is foreseen.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from typing import Protocol, TypeAlias, TypeVar

import pyfuse3
import trio

from fuseunion.core.format import xattr_names
from fuseunion.core.format.xattr_names import MalformedError
from fuseunion.core.ops.attributes import Change
from fuseunion.core.ops.rename import check_flags
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.handle import FileHandle
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.engines.fuse.asking import questions
from fuseunion.engines.fuse.asking.settle import settle
from fuseunion.engines.fuse.asking.watching.busiest import Busiest
from fuseunion.engines.fuse.asking.watching.counts import NONE, Counts
from fuseunion.engines.fuse.serving.callers import Caller, Callers
from fuseunion.engines.fuse.serving.copy_ups import CopyUps
from fuseunion.engines.fuse.serving.waiting.ahead import Ahead
from fuseunion.engines.fuse.serving.waiting.later import Later, now_or_patiently
from fuseunion.engines.fuse.serving.waiting.pace import Pace, now_or_in_steps
from fuseunion.engines.fuse.serving.waiting.reader import Reader
from fuseunion.engines.fuse.serving.waiting.workers import Workers
from fuseunion.linux.os_error import os_error

log = logging.getLogger("fuseunion.fuse")

PID_XATTR = questions.PID.encode()
SYNC_XATTR = questions.SYNC.encode()
FSYNC_XATTR = questions.FSYNC.encode()
COUNTS_XATTR = questions.COUNTS.encode()
LAYER_XATTR = questions.LAYER.encode()
PATH_XATTR = questions.PATH.encode()
_OF_ALL = (LAYER_XATTR, PATH_XATTR)

# What the owner of a mount without permission checks may set, although it is never shown (Requests._restate).
OWNER_XATTR = b"user.containers.override_stat"

T = TypeVar("T")

Preparation: TypeAlias = Generator[Sequence[File] | None, None, None]
"""Steps before a rename, which say what has to be copied up meanwhile (Union.make_movable)."""
_Entry = TypeVar("_Entry", covariant=True)


class Entries(Protocol[_Entry]):
    """What is told to the kernel of an inode, as an adapter writes it down."""

    def attributes(self, inode: Inode) -> _Entry:
        """The entry of an inode."""

    def unreadable(self, inode: Inode, st: os.stat_result) -> _Entry:
        """The entry of an object whose marks cannot be understood: the kernel must not remember it."""


class Requests:
    """The requests of one mount.

    Args:
        union: what is mounted; the caller closes it afterwards.
        own_root: the kernel checks no permissions, and only the mounting user, as root of the tree, can get in.
        list_layers: the virtual attributes that say where things lie are listed.

    Attributes:
        lists_layers: the same.
        device: the /dev/fuse descriptor that the requests come from, once there are any.
        busiest: which inodes are asked for most.
        renewed: while names are about to mean something else (asking/sockets/adding.py): the number of the directory
            and the name of each that the kernel was told of since then, and may not remember. None else, when it may.
        listings: those under way; who lists goes by what `renewed` was at the beginning.
        forget_layers: what the adapter remembers of directories of the layers is not true any more; set by the adapter.
        close_file: the adapter keeps no descriptor of its own of the file with a number; set by the adapter.
        count_open: how many files and directories are open; set by the adapter.
        counts: how many requests there were, and how they were answered; set by the adapter.
    """

    def __init__(self, union: Union, *, own_root: bool = False, list_layers: bool = False) -> None:
        self.union = union
        self.lists_layers = list_layers
        self.own_root = own_root
        self.callers = Callers(union, own_root=own_root)
        self.workers = Workers()
        self.reader = Reader(self.workers)
        self.ahead = Ahead(union, self.workers)
        self.copy_ups = CopyUps(union, self.workers, self.reader)
        # Of another type than the kernel knows; until a lookup or a listing has told it, or it forgot the inode.
        self._retyped: dict[int, Inode] = {}
        self.device = -1
        self.busiest = Busiest()
        self.renewed: set[tuple[int, bytes]] | None = None
        self.listings: set[object] = set()
        self.forget_layers: Callable[[], None] = lambda: None
        self.close_file: Callable[[int], None] = lambda _number: None
        self.count_open: Callable[[], int] = lambda: 0
        self.counts: Callable[[], Counts] = lambda: NONE
        # Who asks to write out waits for the one before: two at once would be no faster, and take two threads.
        self._writing_out = trio.Lock()

    # -- inodes ------------------------------------------------------------------------------------------------------

    def inode(self, number: int) -> Inode:
        """The inode of a request that says a number.

        Raises:
            OSError: ESTALE for one that the kernel knows with another type (`_restate`), and as Union.inode.
        """
        if number in self._retyped:
            raise os_error(errno.ESTALE)
        return self.union.inode(number)

    def file(self, number: int) -> File:
        """As `inode`, for a non-directory. Raises EISDIR as well."""
        if number in self._retyped:
            raise os_error(errno.ESTALE)
        return self.union.file(number)

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        """The inode of a name, or None; the caller tells the kernel of it (`told`)."""
        directory = self.union.directory(parent)
        inode = self.union.lookup(directory, name)
        if inode is not None:
            self.union.complete_links(inode, directory, name)
        return inode

    def told(self, inode: Inode) -> None:
        """The kernel is told of the inode, with the type that it has."""
        self.union.remember(inode)
        if self._retyped:
            self._retyped.pop(inode.ino, None)

    def forget(self, number: int, nlookup: int) -> None:
        """The kernel forgot the inode as many times. It waits for no answer, so an error can only be logged."""
        try:
            self.union.forget(number, nlookup)
            if self._retyped and number in self._retyped and not self._retyped[number].nlookup:
                del self._retyped[number]
        except Exception:
            log.exception("unexpected error in forget of inode %d", number)

    # -- attributes --------------------------------------------------------------------------------------------------

    def change(self, target: Inode, change: Change) -> Later[None] | None:
        """Make a change; one to a file of a lower together with its copy-up."""
        if isinstance(target, File) and not target.in_upper:
            made = self.copy_ups.now(target, change)
            if made is None:
                return self._change_with_copy(target, change)
            if made:
                return None
        return now_or_patiently(lambda: self.union.setattr(target, change))

    async def _change_with_copy(self, target: File, change: Change) -> None:
        if not await self.copy_ups.done(target, change):
            result = now_or_patiently(lambda: self.union.setattr(target, change))
            if result is not None:
                await result

    def set_flags(self, target: Inode, command: int, value: bytes) -> Later[None] | None:
        """Set inode flags (Union.set_flags)."""

        def set_flags() -> None:
            self.union.set_flags(target, command, value)
            self.attributes_changed(target)  # an ioctl(2) does not change the ctime that the kernel knows

        return self._copied_up(target, set_flags)

    def look_after_change(self, inode: Inode, entries: Entries[T]) -> T:
        """The entry of an object whose change is made, and cannot be taken back.

        A look that fails for a moment is repeated: the caller would be told that nothing has happened. Where it fails
        again, the kernel has to ask anew, since it goes on believing what it knew (fs/fuse/dir.c fuse_do_setattr).

        Raises:
            OSError: of the layer.
        """
        try:
            return entries.attributes(inode)
        except OSError as error:
            log.warning("inode %d was changed, but could not be looked at: %s", inode.ino, error)
        try:
            return entries.attributes(inode)
        except OSError:
            self.attributes_changed(inode)
            raise

    @staticmethod
    def attributes_changed(inode: Inode) -> None:
        """Tell the kernel that attributes are others, where it does not think of asking: it remembers them apart
        (fs/fuse/inode.c fuse_change_attributes, inval_mask), and stat(1) asks for what it shows."""
        pyfuse3.invalidate_inode(pyfuse3.InodeT(inode.ino), attr_only=True)

    def access(self, number: int, mode: int) -> bool:
        """Whether root of the tree may: everything but execute what nobody may execute (fs/namei.c
        generic_permission). Only for `own_root`: else the kernel checks by itself."""
        st, _ = self.union.stat(self.inode(number))
        return not (mode & os.X_OK and stat.S_ISREG(st.st_mode) and not st.st_mode & 0o111)

    # -- names -------------------------------------------------------------------------------------------------------

    def link(self, number: int, parent: int, name: bytes) -> File | Later[File]:
        """Give a file one more name."""
        file = self.file(number)
        return self._copied_up(file, lambda: self.union.link(file, self.union.directory(parent), name))

    def _copied_up(self, target: Inode, call: Callable[[], T]) -> T | Later[T]:
        """Make a call for an inode, after it was copied up if it is a file."""
        if isinstance(target, File) and not target.in_upper and self.copy_ups.now(target) is None:
            return self._copied_up_later(target, call)
        return call()

    async def _copied_up_later(self, target: File, call: Callable[[], T]) -> T:
        await self.copy_ups.done(target)
        return call()

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a non-directory."""
        directory = self.union.directory(parent)
        try:
            self.union.unlink(directory, name)
        except OSError as error:
            file = directory.children.get(name)
            if error.errno != errno.ENOSPC or self.union.keeps_removed or file is None:
                raise
            # To free space comes before keeping what somebody may have open: where even that needs some, it goes.
            self.close_file(file.ino)
            self.union.unlink(directory, name, keeps_data=False)
            log.warning("no space was left to keep %r for who may have it open", name)

    def rmdir(self, parent: int, name: bytes) -> Later[None] | None:
        """Remove an empty directory."""
        result = now_or_in_steps(self.union.rmdir(self.union.directory(parent), name))
        return result if result is None else self._long(self._in_long_operation(), result)

    def _in_long_operation(self) -> ExitStack:
        """Say that an operation is in the middle of several steps, until the end of a block.

        From the call on, and not from the beginning of the block: that of a coroutine begins when its task first runs.
        """
        end = ExitStack()
        end.enter_context(self.workers.long_operation())
        return end

    @staticmethod
    async def _long(under_way: ExitStack, operation: Later[None]) -> None:
        with under_way:
            await operation

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> Later[None] | None:
        """Rename; what a lower holds is copied up first."""
        check_flags(flags)
        old = self.union.directory(parent)
        new = self.union.directory(new_parent)
        if not flags and self.union.renamed_at_once(old, name, new, new_name):
            return None
        preparation = self._ready_to_rename(old, name, new, new_name, flags)

        def move() -> None:
            # The kernel holds both parents locked, so the names still mean what they meant.
            self.union.rename(old, name, new, new_name, flags)

        pace = Pace()
        for files in preparation:
            if files or pace.is_over:
                return self._move_later(self._in_long_operation(), preparation, files, move)
        move()
        return None

    async def _move_later(
        self,
        under_way: ExitStack,
        preparation: Preparation,
        files: Sequence[File] | None,
        move: Callable[[], None],
    ) -> None:
        pace = Pace()
        with under_way:
            with closing(preparation):
                await self.copy_ups.all_done(files or ())
                for more in preparation:
                    await self.copy_ups.all_done(more or ())
                    await pace.pause()
            move()

    def _ready_to_rename(self, old: Directory, name: bytes, new: Directory, new_name: bytes, flags: int) -> Preparation:
        if flags & pyfuse3.RENAME_EXCHANGE:
            yield from self._make_movable(new, new_name)
        else:
            target = self.union.lookup(new, new_name)
            if target is not None:
                yield from self.union.make_replaceable(target)
        yield from self._make_movable(old, name)

    def _make_movable(self, directory: Directory, name: bytes) -> Preparation:
        """Copy up what is to be renamed, with all that is in it."""
        inode = self.union.existing(directory, name)
        self.union.complete_links(inode, directory, name)
        yield from self.union.make_movable(inode)

    # -- listings ----------------------------------------------------------------------------------------------------

    def listed(self, directory: Directory, name: bytes, entries: Entries[T]) -> tuple[Inode, T] | None:
        """What to list under a name; the caller tells the kernel of it (`told`) or gives it back (`Union.release`).

        Args:
            entries: makes what is sent.

        Returns:
            None for a name that is hidden or has gone.

        Raises:
            OSError: the name cannot be looked up. Only what is hidden may be missing in a listing.
        """
        inode: Inode | None = None
        try:
            inode = self.union.lookup(directory, name)
            if inode is None:
                return None
            self.union.complete_links(inode, directory, name)  # the kernel will not ask for the name again
            return inode, entries.attributes(inode)
        except OSError as error:
            if inode is not None:
                self.union.release(inode)
            if not isinstance(error, MalformedError):
                raise
            inode, st = self.union.unreadable(directory, name, error)
            return inode, entries.unreadable(inode, st)

    # -- data --------------------------------------------------------------------------------------------------------

    def open(self, file: File, flags: int) -> FileHandle | Later[FileHandle]:
        """Open a file, waiting for leases unless O_NONBLOCK is among the flags."""
        if flags & os.O_NONBLOCK:
            return self.union.open(file, flags)
        return now_or_patiently(lambda: self.union.open(file, flags))

    def fsync(self, file: File, fd: int, *, data_only: bool) -> Later[None] | None:
        """fsync(2) of a file through a descriptor of it.

        Where nothing waits for a disk (Union.syncs) an adapter says ENOSYS instead, once: the kernel does not ask again
        (fs/fuse/file.c fuse_fsync).
        """
        return self._fsync(fd, data_only=data_only) if file.in_upper else None

    async def _fsync(self, fd: int, *, data_only: bool) -> None:
        await self.workers.sync(os.fdatasync if data_only else os.fsync, fd)
        await self._sync_ownership()

    def fsync_directory(self, directory: Directory) -> Later[None] | None:
        """As `fsync`, of a directory."""
        fd = self.union.fsync_directory(directory)
        return None if fd is None else self._fsync_directory(fd)

    async def _fsync_directory(self, fd: int) -> None:
        try:
            await self.workers.sync(os.fsync, fd)
        finally:
            os.close(fd)
        await self._sync_ownership()

    async def _sync_ownership(self) -> None:
        if self.union.stores_ownership:
            await self.workers.sync(self.union.sync_ownership)

    # -- extended attributes -----------------------------------------------------------------------------------------

    def getxattr(self, number: int, name: bytes) -> bytes | Later[bytes]:
        """The value of an attribute, or what a command asks for (questions.py)."""
        if number == pyfuse3.ROOT_INODE:
            if name == PID_XATTR:
                return b"%d" % os.getpid()
            if name == SYNC_XATTR or (name == FSYNC_XATTR and not self.union.settings.volatile):
                return self._write_out()
            if name == FSYNC_XATTR:
                return b""
            if name == COUNTS_XATTR:
                return b"%d %d" % (self.union.known, self.count_open())
        if name in _OF_ALL:
            return self._lies_at(number, name)
        return self.union.getxattr(self.inode(number), name)

    def _lies_at(self, number: int, name: bytes) -> bytes:
        part = self.union.lies_at(self.inode(number))
        if part is None:
            raise os_error(errno.ENODATA)
        if name == LAYER_XATTR:
            return b"upper" if part.upper else os.fsencode(part.layer)
        if part.path is None:
            raise os_error(errno.ENODATA)
        return part.path or b"."

    async def _write_out(self) -> bytes:
        if self.union.writable:
            async with self._writing_out:
                await settle(self.device, self.workers)
                await self.workers.sync(self.union.sync)
        return b""

    def listxattr(self, number: int, uid: int) -> list[bytes]:
        """The names that this user may see."""
        names = [name for name in self.union.listxattr(self.inode(number)) if name not in _OF_ALL]
        if self.lists_layers:
            names += _OF_ALL
        if uid == 0:
            return names
        # The kernel leaves this to the filesystem (fs/xattr.c, listxattr(2): trusted.* is for CAP_SYS_ADMIN).
        return [name for name in names if not name.startswith(b"trusted.")]

    def setxattr(self, number: int, name: bytes, value: bytes, caller: Caller) -> Later[None] | None:
        """Set an attribute."""
        _check_settable(name)
        target = self.inode(number)
        restates = self.own_root and name == OWNER_XATTR
        if not restates:
            self.union.check_xattr_name(name)
        return self._copied_up(target, lambda: self._setxattr(target, name, value, caller))

    def _setxattr(self, target: Inode, name: bytes, value: bytes, caller: Caller) -> None:
        if self.own_root and name == OWNER_XATTR:
            self._restate(target, value)
            return
        outsider = name == xattr_names.POSIX_ACL_ACCESS and self.callers.is_outsider(target, caller)
        self.union.setxattr(target, name, value)
        if outsider:
            self.union.drop_setgid(target, always=True)  # fs/posix_acl.c posix_acl_update_mode
        if name == xattr_names.POSIX_ACL_ACCESS and self.own_root:
            # Without FUSE_POSIX_ACL the kernel does not know that an ACL changes the mode.
            self.attributes_changed(target)

    def _restate(self, target: Inode, value: bytes) -> None:
        """Set owner, mode and type at once. Precondition: a file was copied up.

        The kernel keeps the type of what it knows for ever, and a reply with another is an error (fs/fuse/dir.c
        fuse_do_getattr). So from here on every request that says the number is answered ESTALE: then the kernel looks
        the path up again (path_lookupat with LOOKUP_REVAL, by retry_estale in fs/namei.c), finds another type, and
        makes a new inode (fuse_dentry_revalidate, fuse_stale_inode). Only what has it open already sees the ESTALE.

        Nothing takes the names away: pyfuse3.invalidate_entry would wait for the lock of the directory. Who removes the
        name holds that and waits for the lock of the file, which the caller of setxattr(2) holds until it is answered.
        A thread that waits there outside of a handler would keep /dev/fuse open after a kill, and so keep everybody.
        """
        if self.union.restate(target, value):
            self._retyped[target.ino] = target
        self.attributes_changed(target)

    def removexattr(self, number: int, name: bytes) -> Later[None] | None:
        """Remove an attribute."""
        _check_settable(name)
        target = self.inode(number)
        if not self.union.xattr_is_there(target, name):
            return None
        in_lower = isinstance(target, File) and not target.in_upper

        def remove() -> None:
            try:
                self.union.removexattr(target, name)
            except PermissionError:
                # A capability does not come along with a copy that gets another owner (core/copying/metadata.py), and
                # to remove one takes a privilege, also where there is none.
                if not in_lower or self.has_xattr(target, name):
                    raise

        return self._copied_up(target, remove)

    def has_xattr(self, target: Inode, name: bytes) -> bool:
        """Whether an attribute is there and can be read."""
        try:
            self.union.getxattr(target, name)
        except OSError:
            return False
        return True


def _check_settable(name: bytes) -> None:
    """Raises EPERM for an attribute that says where things lie."""
    if name in _OF_ALL:
        raise os_error(errno.EPERM)
