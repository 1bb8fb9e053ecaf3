"""Inodes of the merged tree and the table that holds them.

Identity (the number, the kind) never changes; state (where the object lies, which names it has) does. A `File` is
anything that is not a directory. It lives in one place at a time:

    lower    (real directory, name) in a lower; stays valid for ever, since lowers never change
    upper    (real directory, name) in the upper, once copied up or created there
    held     by a descriptor, once no name leads to it any more (deleted but open, or a hard link whose remaining
             names were never looked up): one of those that have it open, else an O_PATH descriptor, the pin

A `Directory` has a stack of real directories, the upper's (if any) apart from the lowers', topmost first.

An inode stays in the table while the kernel knows it (`nlookup` > 0), while it is open, or, for a directory, while
a child of it is in the table. nlookup goes up in `InodeTable.remember` and down in `InodeTable.forget`, nowhere else.

Cached attributes (`st`, `reply`) are valid until `stale()`: nobody but this daemon may change a layer.

What asks an object for more than lstat, or changes it, does so through a descriptor of it (`grasp`): a name could lie
in a directory that its owner closed, and most calls would follow a link at the end of a path.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from fuseunion.core.disk.realdir import RealDir, proc_fd
from fuseunion.core.format.numbers import ROOT, Ino, Numbers
from fuseunion.core.ownership import OwnershipStore
from fuseunion.linux.os_error import os_error

if TYPE_CHECKING:
    from fuseunion.core.marks.link_index import LinkGroup
    from fuseunion.core.tree.handle import FileHandle

log = logging.getLogger("fuseunion.inode")

Location = tuple[RealDir, bytes]

_NONE_OPEN: frozenset[FileHandle] = frozenset()


class Inode:
    """What files and directories share."""

    __slots__ = ("absent_xattrs", "ino", "kind", "nlookup", "open_count", "reply", "st")

    def __init__(self, ino: Ino, kind: int) -> None:
        self.ino = ino
        self.kind = kind  # S_IFMT bits
        self.nlookup = 0
        self.open_count = 0
        self.st: os.stat_result | None = None
        self.reply: object | None = None  # the adapter's ready-made answer
        self.absent_xattrs: frozenset[bytes] = frozenset()

    def stale(self) -> None:
        """Something about the inode changed."""
        self.st = None
        self.reply = None

    @property
    def removed(self) -> bool:
        """True when no name leads to the inode."""
        raise NotImplementedError

    def grasp(self) -> AbstractContextManager[int]:
        """A descriptor of the object on disk that gives the attributes."""
        raise NotImplementedError

    def places(self) -> Iterator[tuple[Directory, bytes]]:
        """The names of the inode that are known, as (directory, name)."""
        raise NotImplementedError


class File(Inode):
    """A regular file, symbolic link, device, fifo or socket."""

    __slots__ = (
        "_more",
        "_place",
        "disk_id",
        "group",
        "handles",
        "link_key",
        "lower",
        "lower_id",
        "lower_nlink",
        "pin",
        "upper",
    )

    def __init__(self, ino: Ino, kind: int) -> None:
        super().__init__(ino, kind)
        self.lower: Location | None = None
        self.upper: Location | None = None
        self.pin = -1
        self.lower_id: tuple[int, int] | None = None  # (st_dev, st_ino) of the lower object
        self.disk_id: tuple[int, int] | None = None  # (st_dev, st_ino) of the upper object
        self.link_key: bytes | None = None  # key in the link index, for a lower file with several names
        self.lower_nlink = 1
        self.group: LinkGroup | None = None
        self.handles: set[FileHandle] | frozenset[FileHandle] = _NONE_OPEN
        self._place: tuple[Directory, bytes] | None = None
        self._more: set[tuple[Directory, bytes]] | None = None

    def add_handle(self, handle: FileHandle) -> None:
        """One more user has the file open."""
        if isinstance(self.handles, frozenset):
            self.handles = {handle}  # most inodes never have one, and an empty set is not small
        else:
            self.handles.add(handle)

    def remove_handle(self, handle: FileHandle) -> None:
        """One user closed the file."""
        if not isinstance(self.handles, frozenset):
            self.handles.discard(handle)
            if not self.handles:
                self.handles = _NONE_OPEN

    @property
    def in_upper(self) -> bool:
        """True when the data is the upper's (or was, before the file was deleted)."""
        return self.disk_id is not None

    @property
    def removed(self) -> bool:
        return self._place is None

    def places(self) -> Iterator[tuple[Directory, bytes]]:
        if self._place is not None:
            yield self._place
        if self._more:
            yield from tuple(self._more)

    def add_place(self, directory: Directory, name: bytes) -> None:
        place = (directory, name)
        if self._place is None:
            self._place = place
        elif self._place != place:
            if self._more is None:
                self._more = set()
            self._more.add(place)

    def remove_place(self, directory: Directory, name: bytes) -> None:
        place = (directory, name)
        if self._place == place:
            self._place = self._more.pop() if self._more else None
        elif self._more:
            self._more.discard(place)

    def location(self) -> Location | None:
        """Where the file lies by name, or None when only a descriptor leads to it."""
        if self.upper is not None:
            return self.upper
        return None if self.disk_id is not None else self.lower

    @property
    def needs_descriptor(self) -> bool:
        """True for a file that no name leads to, and nothing else yet."""
        return self.pin < 0 and not self.handles and self.location() is None

    def descriptor(self) -> int:
        """A descriptor of a file that no name leads to, borrowed.

        Raises:
            OSError: ESTALE when there is none, which cannot be.
        """
        if self.pin >= 0:
            return self.pin
        for handle in self.handles:
            return handle.fd
        raise os_error(errno.ESTALE)

    @contextmanager
    def grasp(self) -> Iterator[int]:
        """A descriptor of the object on disk, good for calls on `proc_fd` of it until the block ends.

        Raises:
            OSError: ENOENT when it vanished behind our back; EACCES in a lower.
        """
        place = self.location()
        if place is None:
            yield self.descriptor()
            return
        with place[0].held(place[1]) as fd:
            yield fd

    def real_stat(self) -> os.stat_result:
        """lstat of the object on disk.

        Raises:
            FileNotFoundError: when it vanished behind our back.
        """
        place = self.location()
        if place is None:
            return os.fstat(self.descriptor())
        st = place[0].stat(place[1])
        if st is None:
            raise os_error(errno.ENOENT, place[1])
        return st

    def open(self, flags: int) -> int:
        """A descriptor of the object, owned by the caller."""
        place = self.location()
        if place is None:
            return os.open(proc_fd(self.descriptor()), flags & ~os.O_NOFOLLOW)
        return place[0].open(place[1], flags)

    def pin_down(self) -> None:
        """Hold the object by a descriptor, because its name is about to go; one that has it open serves as well."""
        if self.pin >= 0 or (self.handles and self.in_upper):
            return
        place = self.location()
        if place is not None:
            self.pin = place[0].hold(place[1])

    def unpin(self) -> None:
        if self.pin >= 0:
            os.close(self.pin)
            self.pin = -1


class Directory(Inode):
    """A directory of the merged tree."""

    __slots__ = ("_removed", "children", "default_acl", "lowers", "name", "parent", "upper")

    def __init__(
        self,
        ino: Ino,
        parent: Directory | None,
        name: bytes,
        upper: RealDir | None,
        lowers: tuple[RealDir, ...],
    ) -> None:
        super().__init__(ino, stat.S_IFDIR)
        self.parent = parent
        self.name = name
        self.upper = upper
        self.lowers = lowers
        self.children: dict[bytes, Inode] = {}
        self.default_acl: bytes | None = None  # b"" when there is none, None when not yet asked
        self._removed = False

    @property
    def removed(self) -> bool:
        return self._removed

    def mark_removed(self) -> None:
        """The directory was deleted; it stays usable for those who have it open."""
        self._removed = True

    def places(self) -> Iterator[tuple[Directory, bytes]]:
        if self.parent is not None and not self._removed:
            yield self.parent, self.name

    @property
    def top(self) -> RealDir:
        """The real directory that gives the attributes."""
        return self.upper if self.upper is not None else self.lowers[0]

    @property
    def is_merged(self) -> bool:
        """True when more than one real directory takes part."""
        return len(self.lowers) + (self.upper is not None) > 1

    def layers(self) -> tuple[RealDir, ...]:
        """The stack, topmost first."""
        return self.lowers if self.upper is None else (self.upper, *self.lowers)

    @contextmanager
    def grasp(self) -> Iterator[int]:
        """As File.grasp; borrowed from the cache of descriptors."""
        with self.top.grasp() as fd:
            yield fd

    def proc_path(self) -> bytes:
        """A path that is not to be followed, for comparisons of whole trees."""
        top = self.top
        return top.proc_path(b".") if top.parent is None else top.parent.proc_path(top.name)

    def real_stat(self) -> os.stat_result:
        """fstat of the real directory that gives the attributes."""
        return self.top.own_stat()


class Unreadable(Inode):
    """An object whose marks cannot be understood. It is listed, and every use of it answers an errno."""

    __slots__ = ("code",)

    def __init__(self, ino: Ino, kind: int, code: int) -> None:
        super().__init__(ino, kind)
        self.code = code

    @property
    def removed(self) -> bool:
        return False

    def places(self) -> Iterator[tuple[Directory, bytes]]:
        return iter(())

    def grasp(self) -> AbstractContextManager[int]:
        raise os_error(self.code)


class InodeTable:
    """Every inode the kernel knows, by number."""

    def __init__(self, root: Directory, numbers: Numbers, ownership: OwnershipStore | None = None) -> None:
        self.numbers = numbers
        self._ownership = ownership  # of the upper
        self.root = root
        root.nlookup = 1
        self._inodes: dict[int, Inode] = {ROOT: root}
        # Files with several names, by (st_dev, st_ino) of the object on disk: whatever number a name would give, what
        # is one object on disk is one inode here.
        self._upper_files: dict[tuple[int, int], File] = {}
        self._lower_files: dict[tuple[int, int], File] = {}

    @property
    def size(self) -> int:
        """How many inodes are known, the root among them."""
        return len(self._inodes)

    def find(self, ino: int) -> Inode | None:
        """The inode of a number, or None."""
        return self._inodes.get(ino)

    def free_number(self, wanted: Ino) -> Ino:
        """`wanted`, or another number when a different object has it (a layer that was copied with its marks)."""
        attempt = 0
        ino = wanted
        while ino in self._inodes:
            attempt += 1
            ino = self.numbers.hashed(0, wanted, attempt)
        return ino

    def add(self, inode: Inode) -> None:
        """Put a new inode into the table; its number must be free."""
        self._inodes[inode.ino] = inode

    def find_upper(self, disk_id: tuple[int, int]) -> File | None:
        """The known file that is this object of the upper, if it has several names."""
        return self._upper_files.get(disk_id)

    def find_lower(self, lower_id: tuple[int, int]) -> File | None:
        """The known file that is, or was copied up from, this object of a lower, if it has several names."""
        return self._lower_files.get(lower_id)

    def note_names(self, file: File) -> None:
        """A file has several names, or is about to have."""
        if file.disk_id is not None:
            self._upper_files[file.disk_id] = file
        if file.lower_id is not None:
            self._lower_files[file.lower_id] = file

    def _forget_names(self, file: File) -> None:
        for known, identity in ((self._upper_files, file.disk_id), (self._lower_files, file.lower_id)):
            if identity is not None and known.get(identity) is file:
                del known[identity]

    def remember(self, inode: Inode) -> None:
        """The kernel is told of the inode once more."""
        inode.nlookup += 1

    def forget(self, ino: int, nlookup: int) -> None:
        """The kernel forgot `nlookup` of the times it was told (fuse_lowlevel.h, forget)."""
        inode = self._inodes.get(ino)
        if inode is None:
            log.error("the kernel forgot inode %d, which it cannot know", ino)
            return
        inode.nlookup -= nlookup
        if inode.nlookup < 0:
            log.error("inode %d was forgotten %d times too often", ino, -inode.nlookup)
            inode.nlookup = 0
        self.drop_if_unused(inode)

    @contextmanager
    def held(self, *inodes: Inode | None) -> Iterator[None]:
        """Keep inodes in the table during an operation that looks up and drops others below or above them."""
        for inode in inodes:
            if inode is not None:
                inode.open_count += 1
        try:
            yield
        finally:
            for inode in inodes:
                if inode is not None:
                    self.let_go(inode)

    def let_go(self, inode: Inode) -> None:
        """Undo one `open_count += 1`."""
        inode.open_count -= 1
        self.drop_if_unused(inode)

    def drop_if_unused(self, inode: Inode) -> None:
        """Remove an inode that nobody can name any more, and then perhaps its parents."""
        waiting = [inode]
        while waiting:
            inode = waiting.pop()
            if inode.nlookup or inode.open_count or inode is self.root:
                continue
            if isinstance(inode, Directory) and inode.children:
                continue
            self._let_go(inode)
            for directory, name in inode.places():
                if directory.children.get(name) is inode:
                    del directory.children[name]
                    waiting.append(directory)
            self._inodes.pop(inode.ino, None)
            if isinstance(inode, File):
                self._forget_names(inode)

    def _let_go(self, inode: Inode) -> None:
        """Close the descriptors by which an inode is held; what is stored of a removed object goes with it."""
        if self._ownership is not None and inode.removed:
            self._forget_stored(self._ownership, inode)
        if isinstance(inode, Directory):
            for real in inode.layers():
                real.close()
        elif isinstance(inode, File):
            inode.unpin()

    @staticmethod
    def _forget_stored(ownership: OwnershipStore, inode: Inode) -> None:
        """A row that stays is garbage and does no harm, so errors are logged only."""
        try:
            if isinstance(inode, File) and inode.in_upper:
                st = os.fstat(inode.descriptor())
            elif isinstance(inode, Directory) and inode.upper is not None:
                st = inode.real_stat()
            else:
                return
            if st.st_nlink == 0:
                ownership.forget(st)
        except OSError as error:
            log.warning("what is stored of the removed inode %d stays: %s", inode.ino, error)

    def close(self) -> None:
        """Close the pins that are left at unmount."""
        for inode in self._inodes.values():
            if inode is not self.root:
                self._let_go(inode)
            if isinstance(inode, File):
                for handle in inode.handles:
                    handle.close()
        self._inodes.clear()
