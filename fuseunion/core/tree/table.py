"""Every inode that the kernel knows, or that an operation needs, by number.

nlookup goes up in `InodeTable.remember` and down in `InodeTable.forget`, nowhere else.
"""

from __future__ import annotations

import errno
import logging
import sys

from fuseunion.core.format.numbers import ROOT, Ino, Numbers
from fuseunion.core.ownership.store import OwnershipStore
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.linux.objects.recognition import DiskId

log = logging.getLogger("fuseunion.inode")

_ROOM = 1 << 20
_ROOM_FOR_EACH = 400
"""A dict keeps the room of all that it ever held, at least 42 bytes for each. Where it has more bytes than these, in
all and for each that is left, it is made anew."""


class HeldInodes:
    """Inodes that stay in the table for the length of a block (InodeTable.held)."""

    __slots__ = ("_inodes", "_table")

    def __init__(self, table: InodeTable, inodes: tuple[Inode | None, ...]) -> None:
        self._table = table
        self._inodes = inodes

    def __enter__(self) -> None:
        for inode in self._inodes:
            if inode is not None:
                inode.keep(self)

    def __exit__(self, *_: object) -> None:
        for inode in self._inodes:
            if inode is not None:
                inode.let_go(self)
                self._table.drop_if_unused(inode)


class InodeTable:
    """The inodes of one union.

    Args:
        root: of the merged tree; never dropped.
        numbers: where other numbers come from.
        ownership: the store of the upper.
    """

    def __init__(self, root: Directory, numbers: Numbers, ownership: OwnershipStore | None = None) -> None:
        self.numbers = numbers
        self._ownership = ownership  # of the upper
        self.root = root
        root.nlookup = 1
        self._inodes: dict[int, Inode] = {ROOT: root}
        # Files with several names, by (st_dev, st_ino) of the object on disk: whatever number a name would give, what
        # is one object on disk is one inode here.
        self._upper_files: dict[DiskId, File] = {}
        self._lower_files: dict[DiskId, File] = {}

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

    def find_upper(self, disk_id: DiskId) -> File | None:
        """The known file that is this object of the upper, if it has several names."""
        return self._upper_files.get(disk_id)

    def find_lower(self, lower_id: DiskId) -> File | None:
        """The known file that is, or was copied up from, this object of a lower, if it has several names."""
        return self._lower_files.get(lower_id)

    def note_names(self, file: File) -> None:
        """A file has several names, or is about to have."""
        if file.disk_id is not None:
            self._upper_files[file.disk_id] = file
        if file.lower_links is not None:
            self._lower_files[file.lower_links.lower_id] = file

    def _forget_names(self, file: File) -> None:
        if not self._upper_files and not self._lower_files:
            return
        lower_id = None if file.lower_links is None else file.lower_links.lower_id
        for known, identity in ((self._upper_files, file.disk_id), (self._lower_files, lower_id)):
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
        left = inode.nlookup = inode.nlookup - nlookup
        if left > 0:
            return
        if left < 0:
            log.error("inode %d was forgotten %d times too often", ino, -left)
            inode.nlookup = 0
        self.drop_if_unused(inode)

    def held(self, *inodes: Inode | None) -> HeldInodes:
        """Keep inodes in the table during an operation that looks up and drops others below or above them."""
        return HeldInodes(self, inodes)

    def drop_if_unused(self, inode: Inode) -> None:
        """Remove an inode that nobody can name any more, and then perhaps its parents."""
        if inode.nlookup:
            return  # the usual end of an operation
        waiting = [inode]
        while waiting:
            inode = waiting.pop()
            if inode.nlookup or inode.is_kept or inode is self.root:
                continue
            if isinstance(inode, Directory) and inode.children:
                continue
            self._release(inode)
            for directory, name in inode.names():
                assert isinstance(directory, Directory)
                if directory.children.get(name) is inode:
                    del directory.children[name]
                    waiting.append(directory)
            self._inodes.pop(inode.ino, None)
            if sys.getsizeof(self._inodes) > max(_ROOM, _ROOM_FOR_EACH * len(self._inodes)):
                self._inodes = dict(self._inodes)
            if isinstance(inode, File):
                self._forget_names(inode)

    def _release(self, inode: Inode) -> None:
        """Close the descriptors by which an inode is held; what is stored of a removed object goes with it."""
        if self._ownership is not None and inode.removed and isinstance(inode, (File, Directory)):
            self._forget_stored(self._ownership, inode)
        if isinstance(inode, Directory):
            for real in inode.layers():
                real.close()
        elif isinstance(inode, File):
            inode.drop()

    @staticmethod
    def _forget_stored(ownership: OwnershipStore, inode: File | Directory) -> None:
        """A row that stays is garbage and does no harm, so errors are logged only."""
        try:
            in_upper = inode.in_upper if isinstance(inode, File) else inode.upper is not None
            if not in_upper:
                return
            st = inode.real_stat()
            if st.st_nlink == 0:
                ownership.forget(st)
        except OSError as error:
            if error.errno == errno.ESTALE:
                return  # another object has its name, and what is stored of that one
            log.warning("what is stored of the removed inode %d stays: %s", inode.ino, error)

    def close(self) -> None:
        """Close the pins that are left at unmount."""
        for inode in self._inodes.values():
            if inode is not self.root:
                self._release(inode)
            if isinstance(inode, File):
                for handle in inode.handles:
                    handle.close()
        self._inodes.clear()
