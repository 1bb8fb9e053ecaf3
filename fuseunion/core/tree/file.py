"""A file of the merged tree: a regular file, symbolic link, device, fifo or socket.

It lies in one place at a time (place.py). `File` is the only one that changes it:

    copied_up        InLower -> InUpper, or Held when it has no name any more
    leads_to         Held -> InUpper, when a name of it was found; InUpper and InLower by another name
    lost_name        InUpper -> InUpper by another name, or Held
    unlinked         InUpper -> Held

The data of a file without data of its own (metacopy) lies in a lower, at `File.data`, until

    filled           its data is where the file lies
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, cast

from fuseunion.core.disk.access import LayerAccess
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.format.numbers import Ino
from fuseunion.core.marks.link_index import LinkGroup
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.inode import NONE_ABSENT, Inode
from fuseunion.core.tree.place import Held, InLower, InUpper, Location, Place
from fuseunion.linux.objects.permission import as_owner_of
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.linux.objects.recognition import DiskId, but_number, id_of
from fuseunion.linux.os_error import os_error


class OpenFile(Protocol):
    """A user's open file (handle.py): `fd` refers to the object where it lies now."""

    fd: int
    writable: bool

    def switch(self, fd: int) -> None:
        """Refer to what `fd` refers to from now on."""

    def close(self) -> None:
        """Close the descriptor."""


_NONE_OPEN: frozenset[OpenFile] = frozenset()


def kept_open(fd: int, layer: LayerAccess) -> int:
    """A descriptor that keeps what an O_PATH descriptor is of: the same, or, where only that is kept that is open
    (LayerAccess.keeps_removed), another in its place.

    Raises:
        OSError: as open(2).
    """
    held = RealObject(fd)
    if layer.keeps_removed or not stat.S_ISREG(held.stat().st_mode):
        return fd  # of what is no regular file nobody needs more
    try:
        return as_owner_of(held, lambda: held.open(os.O_RDONLY | os.O_NONBLOCK))
    finally:
        os.close(fd)


class LowerLinks:
    """What is known of a lower file with several names.

    Attributes:
        lower_id: st_dev and st_ino of the lower file.
        key: of its entry in the link index.
    """

    __slots__ = ("key", "lower_id")

    def __init__(self, lower_id: DiskId, key: bytes) -> None:
        self.lower_id = lower_id
        self.key = key


class Grasp:
    """A file's object, held for the length of a block (File.grasp). No generator: most operations need it."""

    __slots__ = ("_fd", "_file", "_owned")

    def __init__(self, file: File) -> None:
        self._file = file

    def __enter__(self) -> RealObject:
        self._fd, self._owned = self._file.grasped()
        return RealObject(self._fd)

    def __exit__(self, *_: object) -> None:
        if self._owned:
            os.close(self._fd)


class Holding:
    """A file that is held while the name that leads to it goes (File.holding)."""

    __slots__ = ("_data", "_file", "_new")

    def __init__(self, file: File, *, data: bool) -> None:
        self._file = file
        self._data = data

    def __enter__(self) -> bool:
        self._new = self._file.hold(data=self._data)
        return self._new

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._new:
            self._file.unhold()


class File(Inode):
    """A file of the merged tree.

    Attributes:
        lower_links: for a lower file with several names, and for its copy.
        group: its entry in the link index, if it has one.
        handles: the users who have it open.
        data: where the data lies, when it is not where the file lies (marks/metacopy.py). Handles then refer to it.
    """

    __slots__ = ("_directory", "_more_names", "_name", "_pin", "_place", "data", "group", "handles", "lower_links")

    def __init__(self, ino: Ino, kind: int, place: Place, data: InLower | None = None) -> None:
        super().__init__(ino, kind)
        self._place = place
        self.data = data
        self._pin = -1  # a descriptor of its own, once no name leads to it, or the last one is about to go
        self.lower_links: LowerLinks | None = None
        self.group: LinkGroup | None = None
        self.handles: set[OpenFile] | frozenset[OpenFile] = _NONE_OPEN
        self._directory: Directory | None = None  # of its first name; a pair of both would take 56 bytes
        self._name = b""
        self._more_names: set[tuple[Directory, bytes]] | None = None

    # -- who has it open -----------------------------------------------------------------------------------------

    def opened(self, handle: OpenFile) -> None:
        """One more user has the file open."""
        self.keep(handle)
        if isinstance(self.handles, frozenset):
            self.handles = {handle}  # most inodes never have one, and an empty set is not small
        else:
            self.handles.add(handle)

    def closed(self, handle: OpenFile) -> None:
        """One user closed the file; closes the descriptor, unless nothing else leads to the file."""
        self.let_go(handle)
        self.handles = self.handles - {handle} or _NONE_OPEN
        if isinstance(self._place, Held) and self._pin < 0 and not self.handles and (self.nlookup or self.is_kept):
            if self._place.stays_open:
                self._pin = handle.fd
                return
            try:
                self._pin = RealObject(handle.fd).open(os.O_PATH)  # the file is not open any more
            except OSError:
                self._pin = handle.fd
                return
        handle.close()

    # -- names -------------------------------------------------------------------------------------------------------

    @property
    def removed(self) -> bool:
        return self._directory is None

    def names(self) -> Iterator[tuple[Directory, bytes]]:
        if self._directory is not None:
            yield self._directory, self._name
        if self._more_names:
            yield from tuple(self._more_names)

    @property
    def only_name(self) -> tuple[Directory, bytes] | None:
        """The name of a file of which one is known."""
        return None if self._directory is None or self._more_names else (self._directory, self._name)

    def add_name(self, directory: Directory, name: bytes) -> None:
        """A name of the file is known."""
        if self._directory is None:
            self._directory, self._name = directory, name
        elif self._directory is not directory or self._name != name:
            if self._more_names is None:
                self._more_names = set()
            self._more_names.add((directory, name))

    def remove_name(self, directory: Directory, name: bytes) -> None:
        """A name of the file is gone."""
        if self._directory is directory and self._name == name:
            self._directory, self._name = self._more_names.pop() if self._more_names else (None, b"")
        elif self._more_names:
            self._more_names.discard((directory, name))

    # -- where it lies -----------------------------------------------------------------------------------------------

    @property
    def place(self) -> Place:
        """Where the file lies."""
        return self._place

    @property
    def in_upper(self) -> bool:
        """True when the data is the upper's (or was, before the file was deleted)."""
        return self.data is None and not isinstance(self._place, InLower)

    @property
    def has_upper(self) -> bool:
        """True when the upper gives the attributes, whether it has the data or not."""
        return not isinstance(self._place, InLower)

    @property
    def disk_id(self) -> DiskId | None:
        """st_dev and st_ino of the upper object; None for a file of a lower."""
        return None if isinstance(self._place, InLower) else self._place.disk_id

    def location(self) -> Location | None:
        """The name that leads to the file, or None when only a descriptor does."""
        return self._place.location

    def copied_up(
        self,
        location: Location | None,
        disk_id: DiskId,
        pin: int,
        data: InLower | None = None,
        *,
        stays_open: bool = False,
    ) -> None:
        """The file is in the upper from now on.

        Args:
            location: a name of it there; None when it has none.
            pin: a descriptor of the copy, which belongs to the file from now on; -1 when none is needed.
            data: where the data stayed.
            stays_open: as of Held.
        """
        self.data = data
        self._place = Held(disk_id, stays_open) if location is None else InUpper(*location, *disk_id)
        self._pin = pin
        self.absent_xattrs = NONE_ABSENT
        self.stale()

    def filled(self) -> None:
        """The data is where the file lies."""
        self.data = None
        self.stale()

    def leads_to(self, real: RealDir, name: bytes) -> None:
        """A name leads to the file, where it lies already."""
        where = InLower if isinstance(self._place, InLower) else InUpper
        self._place = where(real, name, *self._place.disk_id)
        self.unhold()

    def renamed(self, old: Location, new: Location) -> None:
        """A name in the upper is another."""
        if isinstance(self._place, InUpper) and self._place.location == old:
            self._place = InUpper(*new, *self._place.disk_id)
        self.stale()

    def is_at(self, real: RealDir, name: bytes) -> bool:
        """True when this name in the upper is the one that leads to the file."""
        return isinstance(self._place, InUpper) and self._place.location == (real, name)

    def is_plainly_at(self, directory: Directory, name: bytes) -> bool:
        """True when the kernel knows the file, its data is the upper's, this is the only known name of it, and it leads
        to the file, of which no link index has anything."""
        place = self._place
        return (
            isinstance(place, InUpper)
            and place.real is directory.upper
            and place.name == name
            and self._directory is directory
            and self._name == name
            and not self._more_names
            and self.group is None
            and self.data is None
            and self._pin < 0
            and self.nlookup > 0
        )

    def is_plainly_lower(self, directory: Directory, name: bytes) -> bool:
        """True when the kernel knows the file, it lies in a lower, where it has one name, and has this one here."""
        return (
            isinstance(self._place, InLower)
            and self._directory is directory
            and self._name == name
            and not self._more_names
            and self.lower_links is None
            and self.group is None
            and self.data is None
            and self.nlookup > 0
        )

    def lost_only_name(self, held: int) -> None:
        """The name is gone that leads to the file, and is the only one (`is_plainly_at`).

        Args:
            held: a descriptor of it, which belongs to the file from now on; -1 where who has it open has one.
        """
        place = self._place
        assert isinstance(place, InUpper)
        self._directory, self._name, self._more_names = None, b"", None
        self._place = Held(place.disk_id)
        self._pin = held
        self.stale()

    def lost_name(self, others: Iterable[Location]) -> None:
        """The name in the upper that led to the file is gone: another one does, or the descriptor that holds it.

        Precondition: it is held (`holding`).

        Args:
            others: names that may be links of it.
        """
        assert isinstance(self._place, InUpper)
        self._place = Held(self._place.disk_id, not self._place.real.layer.keeps_removed)
        for real, name in others:
            try:
                st = real.stat(name)
            except OSError:
                continue  # in a directory that cannot be entered: the file is held
            if st is not None and id_of(st) == self._place.disk_id:
                self.leads_to(real, name)
                return

    def unlinked(self) -> None:
        """No name is to lead to the file in the upper any more.

        Raises:
            OSError: it cannot be held; then nothing changes.
        """
        if isinstance(self._place, InUpper):
            self.hold()
            self._place = Held(self._place.disk_id, not self._place.real.layer.keeps_removed)

    def holding(self, *, data: bool = True) -> AbstractContextManager[bool]:
        """Hold the file by a descriptor while, in the block, the name that leads to it goes.

        The block is told whether the name has been recognised for that. `data` is as for `hold`.
        """
        return Holding(self, data=data)

    def hold(self, *, data: bool = True) -> bool:
        """Hold the file by a descriptor, if nothing does; True when that is new. Raises as `grasp`.

        Args:
            data: so that its data stays, too, where only that of what is open does.
        """
        if self._pin >= 0 or (self.handles and self.in_upper):
            return False  # a descriptor of who has it open serves as well
        if self._place.location is None:
            return False
        fd, _ = self.grasped()
        self._pin = kept_open(fd, self._place.real.layer) if data and isinstance(self._place, InUpper) else fd
        return True

    def unhold(self) -> None:
        """Close the descriptor that the file has for itself."""
        if self._pin >= 0:
            os.close(self._pin)
            self._pin = -1

    def drop(self) -> None:
        """Nobody needs the file any more."""
        self.unhold()

    # -- the object on disk ------------------------------------------------------------------------------------------

    def recognise(self, st: os.stat_result) -> None:
        """Refuse what a name leads to if it is not the object that was found there.

        Somebody who may write in a layer can put another object in the place of this one. The kernel has decided by
        the attributes that were shown who may do what with it, and has cached its pages: both are about the old one.
        The file has no name then until one is looked up again: the next lookup finds what is there.

        Args:
            st: of what the name leads to.

        Raises:
            OSError: ESTALE.
        """
        place = self._place
        if id_of(st) == place.disk_id and self._may_be_of(stat.S_IFMT(st.st_mode)):
            return
        if isinstance(place, InLower) and self._is_as_shown(place, st):
            self._place = InLower(place.real, place.name, *id_of(st))
            return
        self.lose_names()
        raise os_error(errno.ESTALE, None if isinstance(place, Held) else place.name)

    def lose_names(self) -> None:
        """No name of the file is known any more: the next lookup finds what is there."""
        for directory, name in self.names():
            if directory.children.get(name) is self:
                del directory.children[name]
        self._directory = self._more_names = None
        self.stale()

    def _may_be_of(self, kind: int) -> bool:
        """Whether an object of this type can be the file: where ownership is stored, a regular file can be anything."""
        if kind == self.kind:
            return True
        place = self._place
        stored = not isinstance(place, Held) and place.real.layer.ownership is not None
        return stored and stat.S_ISREG(kind)

    def _is_as_shown(self, place: InLower, st: os.stat_result) -> bool:
        """Whether all but the inode number is as it was shown.

        Some filesystems number an object anew when they have forgotten it (libfuse without use_ino, fs/fat).
        """
        shown = self.st
        return place.real.layer.ownership is None and shown is not None and but_number(shown) == but_number(st)

    def _descriptor(self) -> int:
        """A descriptor of a file that no name leads to, borrowed.

        Raises:
            OSError: ESTALE when there is none, which cannot be.
        """
        if self._pin >= 0:
            return self._pin
        for handle in self.handles:
            return handle.fd
        raise os_error(errno.ESTALE)

    def grasp(self) -> AbstractContextManager[RealObject]:
        """As Inode.grasp.

        Raises:
            OSError: ENOENT when it vanished behind our back, ESTALE when it is another now; EACCES in a lower.
        """
        return Grasp(self)

    def grasped(self) -> tuple[int, bool]:
        """A descriptor of the object, and whether it belongs to the caller. Raises as `grasp`."""
        location = self._place.location
        if location is None:
            return self._descriptor(), False
        fd = location[0].hold(location[1])
        try:
            self.recognise(os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return fd, True

    def real_stat(self) -> os.stat_result:
        """lstat of the object on disk; with the blocks of the data, where that lies elsewhere (fs/overlayfs/inode.c
        ovl_getattr).

        Raises:
            OSError: ENOENT when it vanished behind our back; ESTALE when it is another now.
        """
        st = self._real_stat()
        return st if self.data is None else _with_blocks(st, self._data_stat(self.data).st_blocks)

    def _data_stat(self, data: InLower) -> os.stat_result:
        st = data.real.stat(data.name)
        self._recognise_data(data, st)
        assert st is not None, "it is recognised"
        return st

    def _recognise_data(self, data: InLower, st: os.stat_result | None) -> None:
        """As `recognise`, of the data."""
        if st is None or id_of(st) != data.disk_id:
            self.lose_names()
            raise os_error(errno.ESTALE, data.name)

    def _real_stat(self) -> os.stat_result:
        location = self._place.location
        if location is None:
            return os.fstat(self._descriptor())
        st = location[0].stat(location[1])
        if st is None:
            raise os_error(errno.ENOENT, location[1])
        self.recognise(st)
        return st

    def open(self, flags: int) -> int:
        """A descriptor of the data, which is a regular file on disk; owned by the caller.

        Precondition: for writing, the data is where the file lies.

        Raises:
            OSError: as open(2); ESTALE when its name leads to another object now; EAGAIN while somebody has a lease on
                it (RealObject.open_regular).
        """
        if self.data is not None:
            return self._open_data(self.data, flags)
        location = self._place.location
        if location is None:
            return RealObject(self._descriptor()).open_regular(flags)[0]
        fd, st = location[0].open_regular(location[1], flags)
        try:
            self.recognise(st)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _open_data(self, data: InLower, flags: int) -> int:
        assert flags & os.O_ACCMODE == os.O_RDONLY, "a lower is never written"
        fd, st = data.real.open_regular(data.name, flags)
        try:
            self._recognise_data(data, st)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def close_descriptor(self, fd: int) -> None:
        """Close a descriptor of the data, as its filesystem has it."""
        place = self._place if self.data is None else self.data
        if isinstance(place, InLower):
            place.real.layer.close_file(fd)
        else:
            os.close(fd)


def _with_blocks(st: os.stat_result, blocks: int) -> os.stat_result:
    # Blocks and nanoseconds are not in the sequence, but in the dictionary that pickling uses.
    _, (fields, extra) = cast(tuple[object, tuple[tuple[int, ...], dict[str, object]]], st.__reduce__())
    return os.stat_result(fields, extra | {"st_blocks": blocks})
