"""Real descriptors of files that the kernel reads and writes without having opened them here.

The kernel was told that there is nothing to open (ENOSYS to FUSE_OPEN), so reads and writes say an inode. A bounded
number of descriptors is kept, the least recently used is closed first, and all of them when the mount is idle. Closing
one does no harm: the file can be opened again, or is held (File.closed) when no name leads to it any more.

A descriptor is shared with the extension, which then reads and writes without asking, while that needs no decision: for
writes, while the file is in the upper and has nothing that a write takes away; for attributes, while those of the
descriptor are what is shown besides. This is the only module that shares one, and `_unshare` the only place that takes
it back: when it is closed, and when Python changes owner, mode or extended attributes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import ModuleType
from typing import TypeVar

from fuseunion.core.format import xattr_names
from fuseunion.core.tree.file import File
from fuseunion.core.tree.handle import FileHandle
from fuseunion.core.union import Union
from fuseunion.engines.fuse.serving.waiting.reader import Reader
from fuseunion.engines.fuse.wire.native import device
from fuseunion.linux.objects.recognition import id_of

T = TypeVar("T")


class OpenFile:
    """A file with a descriptor.

    Args:
        readable: see below; None where that has to be asked for.

    Attributes:
        readable: the descriptor can be read from.
        plain: has no set-ID bits and no capability that a write would have to take away.
        uses: what the descriptor is shared for.
        never_waits: known to lie on a filesystem in memory.
    """

    __slots__ = ("_closing", "_users", "handle", "never_waits", "plain", "readable", "uses")

    def __init__(self, handle: FileHandle, readable: bool | None) -> None:
        self.handle = handle
        if readable is None:
            # A file that its owner may only write to can be opened for that alone (Union.open).
            readable = not handle.writable or fcntl.fcntl(handle.fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY
        self.readable = readable
        self.plain = False
        self.never_waits = False
        self.uses = 0
        self._users = 0
        self._closing: Callable[[FileHandle], None] | None = None

    def close(self, closing: Callable[[FileHandle], None]) -> None:
        """Close the descriptor, as soon as nobody uses it any more."""
        if self._users:
            self._closing = closing
        else:
            closing(self.handle)

    def used(self) -> ExitStack:
        """Keep the descriptor open from this call to the end of the block, whatever the loop does meanwhile.

        From the call, and not from the beginning of the block: that of a coroutine begins when its task first runs.
        """
        self.use()
        end = ExitStack()
        end.callback(self.release)
        return end

    def use(self) -> None:
        """As `used`, until `release`: for what does not wait."""
        self._users += 1

    def release(self) -> None:
        """Undo `use`."""
        self._users -= 1
        if not self._users and self._closing is not None:
            self._closing(self.handle)


class OpenFiles:
    """The descriptors of one mount.

    Args:
        reader: knows whose reads never wait.
        most: how many are kept.
        shows_all: the kernel decides who may change what.
        lists_more: more extended attributes are listed than a file has.
    """

    def __init__(self, union: Union, reader: Reader, most: int, *, shows_all: bool, lists_more: bool) -> None:
        self._union = union
        self._shows_all = shows_all
        self._shows_xattrs = shows_all and not lists_more
        self._reader = reader
        self._most = most
        self._files: OrderedDict[int, OpenFile] = OrderedDict()
        self._uses_of_new = 0  # not known yet
        self._synced = _device().SYNCS if union.syncs and not union.stores_ownership else 0

    def reading(self, file: File) -> OpenFile:
        """A file to read from. Raises as Union.open."""
        known = self._files.get(file.ino)
        if known is not None and known.readable:
            self._files.move_to_end(file.ino)
            return known
        return self._open(file, os.O_RDONLY)

    def writing(self, file: File) -> OpenFile:
        """A file to write to, and to read from where that is allowed. Precondition: it was copied up.

        Raises as Union.open.
        """
        known = self._files.get(file.ino)
        if known is not None and known.handle.writable:
            self._files.move_to_end(file.ino)
            return known
        return self._open(file, os.O_WRONLY)

    def _open(self, file: File, flags: int) -> OpenFile:
        if flags == os.O_RDONLY:
            handle = self._opened_at_once(file)
            if handle is not None:
                return self.keep(handle, readable=True)
        return self.keep(self.retried(lambda: self._union.open(file, flags)))

    def _opened_at_once(self, file: File) -> FileHandle | None:
        """A file that was opened for reading in one call, if it is that simple; `Union.open` says what is wrong."""
        try:
            place = self._union.place_to_open(file)
        except OSError:
            return None
        fd = None if place is None else _device().open_plain(*place)
        if fd is None:
            return None
        try:
            return self.retried(lambda: self._union.opened(file, fd, writable=False))
        except OSError:
            os.close(fd)
            raise

    def take(self, file: File, fd: int) -> OpenFile | None:
        """Keep a descriptor that was opened for reading, of what may be the file.

        Returns:
            None where it is not, or somebody was sooner: it stays the caller's then.

        Raises:
            OSError: as Union.open; it stays the caller's, too.
        """
        place = self._union.place_to_open(file)
        if place is None or file.ino in self._files or id_of(os.fstat(fd)) != place[2:]:
            return None
        return self.keep(self.retried(lambda: self._union.opened(file, fd, writable=False)), readable=True)

    def keep(self, handle: FileHandle, *, readable: bool | None = None) -> OpenFile:
        """Keep the descriptor of a handle, which belongs to this object from now on.

        Args:
            readable: as of OpenFile.
        """
        opened = OpenFile(handle, readable)
        self.close(handle.file.ino)
        self._files[handle.file.ino] = opened
        self._shrink(self._most)
        return opened

    def retried(self, call: Callable[[], T]) -> T:
        """Make a call that opens a file; where the budget is used up, again after some were closed."""
        try:
            return call()
        except OSError as error:
            if error.errno not in (errno.ENFILE, errno.EMFILE) or not self._files:
                raise
        self._shrink(len(self._files) // 2)
        return call()

    def changed(self, number: int) -> None:
        """Owner, mode or attributes of a file changed: what is known of its privileges is not true any more."""
        known = self._files.get(number)
        if known is not None:
            known.plain = False
            self._unshare(number, known)

    def share_for_reading(self, opened: OpenFile) -> None:
        """Let reads of a file be repeated, after one was answered."""
        self._share(opened, _device().READS)

    def share_for_writing(self, opened: OpenFile) -> None:
        """Let writes to a file, which was copied up, be repeated, if there is nothing that they take away."""
        if opened.plain:
            self._share(opened, _device().WRITES | (_device().READS if opened.readable else 0))

    def share_new(self, opened: OpenFile, mode: int) -> None:
        """As `share_for_writing`, of a file that was just made, or copied up because it is written to.

        Args:
            mode: with which it was asked for; 0 for one without set-ID bits and capability.
        """
        if mode & (stat.S_ISUID | stat.S_ISGID) or self._union.stores_ownership:
            return
        opened.plain = True
        if self._uses_of_new:
            opened.uses = self._uses_of_new
            _device().share(opened.handle.file.ino, opened.handle.fd, opened.uses)
            return
        with suppress(OSError):  # the file is made: a look that fails now is no answer
            self.share_for_writing(opened)
            self._uses_of_new = opened.uses  # they lie on one filesystem, and nothing else tells them apart

    def _share(self, opened: OpenFile, uses: int) -> None:
        handle = opened.handle
        if self._files.get(handle.file.ino) is opened:
            opened.uses |= uses | (self._synced if handle.writable else 0)
            opened.never_waits = opened.never_waits or self._reader.never_waits(handle.fd)
            if opened.never_waits:
                opened.uses |= _device().NEVER_WAITS
            if opened.plain and self._shows_all and self._union.shows_as_it_is(handle.file):
                opened.uses |= _device().ATTRIBUTES
                if xattr_names.CAPABILITY in handle.file.absent_xattrs:
                    opened.uses |= _device().NO_CAPABILITY
            if self._shows_xattrs and self._union.has_its_own_attributes(handle.file):
                opened.uses |= _device().XATTRS
            _device().share(handle.file.ino, handle.fd, opened.uses)

    @staticmethod
    def _unshare(number: int, opened: OpenFile) -> None:
        if opened.uses:
            opened.uses = 0
            _device().unshare(number)

    def changed_alone(self, number: int) -> None:
        """A file was changed through the descriptor that was shared, which stays as it is."""
        known = self._files.get(number)
        if known is not None:
            known.handle.file.stale()
            known.handle.file.may_have(xattr_names.POSIX_ACL_ACCESS)

    def close(self, number: int) -> None:
        """Close the descriptor of a file, if it has one."""
        known = self._files.pop(number, None)
        if known is not None:
            self._unshare(number, known)
            known.close(self._union.release_file)

    def forgotten(self, number: int) -> None:
        """The kernel may have forgotten a file: then nobody reads or writes it any more."""
        known = self._files.get(number)
        if known is not None and not known.handle.file.nlookup:
            self.close(number)

    def __contains__(self, number: int) -> bool:
        """Whether a descriptor of a file is kept."""
        return number in self._files

    def __len__(self) -> int:
        """How many descriptors are kept."""
        return len(self._files)

    def close_all(self) -> None:
        """Close all descriptors."""
        self._shrink(0)

    def _shrink(self, size: int) -> None:
        while len(self._files) > size:
            self.close(next(iter(self._files)))


def _device() -> ModuleType:
    assert device.device is not None
    return device.device
