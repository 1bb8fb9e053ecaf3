"""The copy-up of most small files: a plain file of a lower, beside a directory that is in the upper already.

Nothing has to be decided on the way: no stored owner, no map of ids, no second name, nobody who has it open, no blocks
that could be shared. So whoever can make the system calls in one go (wire/native/plain/copy.c), or in two where the
copy has to be put on disk in between, gets them from here, and says what came of it; what is not as it was believed to
be is left to files.py.

A change to a whole tree comes here for each file, and does little else: what is the same for all is found out once.
"""

from __future__ import annotations

import os
import stat
from typing import TypeAlias

from fuseunion.core.disk.descriptors import PER_COPY
from fuseunion.core.format import xattr_names
from fuseunion.core.ids.identity import KEEP
from fuseunion.core.marks import origin_mark
from fuseunion.core.ops.attributes import Change
from fuseunion.core.ops.copy_up.files import show
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import NEEDS_NO_PATH, NO_CAPABILITY
from fuseunion.core.tree.place import InLower, Location
from fuseunion.core.tree.state import State, Upper

AS_IT_IS = -1
"""A mode or a time that is not to be changed, as KEEP is an owner."""

PlainCopy: TypeAlias = tuple[int, bytes, int, int, int, bytes, int, bytes, int, bytes, bytes]
"""What is to be done, for copy_plain: a descriptor of the directory of the file, its name there, its st_dev and st_ino;
a descriptor of work, a name that is free there; a descriptor of the directory in the upper, the name there; the number
that is shown; name and value of the origin mark. Descriptors are borrowed until the next call of the core."""

Wish: TypeAlias = tuple[int, int, int, int, int]
"""What the copy is to have, for copy_plain: user and group on disk or KEEP, permissions, time of access and of
modification in nanoseconds or AS_IT_IS."""

NOTHING: Wish = (KEEP, KEEP, AS_IT_IS, AS_IT_IS, AS_IT_IS)

_SET_ID = stat.S_ISUID | stat.S_ISGID
_LATEST = 1 << 63
"""Nanoseconds since 1970 that need more than 64 bits: the year 2262."""


def wish(uid: int | None, gid: int | None, mode: int | None, atime_ns: int | None, mtime_ns: int | None) -> Wish | None:
    """What a copy is to have; None for what no plain one can have."""
    if mode is None:
        mode = AS_IT_IS
    elif mode & _SET_ID:
        return None
    else:
        mode = stat.S_IMODE(mode)
    if atime_ns is None:
        atime_ns = AS_IT_IS
    elif not 0 <= atime_ns < _LATEST:
        return None
    if mtime_ns is None:
        mtime_ns = AS_IT_IS
    elif not 0 <= mtime_ns < _LATEST:
        return None
    return KEEP if uid is None else uid, KEEP if gid is None else gid, mode, atime_ns, mtime_ns


def wish_of(change: Change | None) -> Wish | None:
    """As `wish`, for a change."""
    if change is None:
        return NOTHING
    if change.size is not None or change.touch or change.clear_capability:
        return None
    return wish(change.uid, change.gid, change.mode, change.atime_ns, change.mtime_ns)


class PlainCopies:
    """The plain copy-ups of one union.

    Args:
        state: of the union, which stores owners or does not.

    Attributes:
        any: whether there can be one.
        waits: a copy has to be put on disk before it is shown.
    """

    __slots__ = ("_mark", "_numbers", "_state", "_unshared", "_value", "_work", "any", "waits")

    def __init__(self, state: State) -> None:
        self._state = state
        self._numbers = state.numbers
        self._value = origin_mark.template()
        self.any = self.waits = False
        if state.upper is not None:
            self.waits = not (state.settings.volatile or state.upper.work.capabilities.in_memory)
            self.any = _is_nothing_else(state, state.upper, self.waits)
        if self.any:
            upper = state.writable()
            self._work = upper.work
            self._unshared = upper.unshared
            self._mark = (upper.work.capabilities.xattr_prefix or b"") + xattr_names.UNION_ORIGIN

    def of(self, file: File, *, leaves: bool = False) -> PlainCopy | None:
        """The copy-up of a file; None where it needs more than system calls.

        Args:
            leaves: it is going to leave the place of its lower, of which its mark is to know the path then.

        Raises:
            OSError: as RealDir.fd.
        """
        place, name = file.place, self._name_of(file)
        if not self.any or name is None or file.kind != stat.S_IFREG:
            return None
        assert type(place) is InLower
        lower, lower_name, device, number = place
        upper, new_name = name
        if lower.layer.ownership is not None or lower.layer.withholds(device, number):
            return None
        if lower.layer.remote:
            return None  # it would be opened in vain, and the server be told of that
        if self.waits and device not in self._unshared:
            return None  # shared blocks need not be put on disk
        value = self._value
        if leaves:
            completed = origin_mark.with_path(value, origin_mark.path_of(lower, lower_name))
            if completed is None:
                return None
            value = completed
        lower_fd, upper_fd, work = lower.fd(), upper.fd(), self._work
        if not lower.has_as_descriptor(lower_fd):
            return None  # to open one closed the other
        work_fd, temporary = work.tmp.fd(), work.new_name()
        return lower_fd, lower_name, device, number, work_fd, temporary, upper_fd, new_name, file.ino, self._mark, value

    @staticmethod
    def _name_of(file: File) -> Location | None:
        """Where the copy of a file of a lower is shown, if that is all that there is to be done then."""
        name = file.only_name
        if (
            name is None
            or type(file.place) is not InLower
            or file.handles
            or file.data is not None
            or file.lower_links is not None
            or file.group is not None
        ):
            return None
        upper = name[0].upper
        return None if upper is None else (upper, name[1])

    def target(self, file: File) -> tuple[int, int, bytes] | None:
        """Where the prepared copy of a file is shown, for show_plain: descriptors of work and of a directory in the
        upper, borrowed as of RealDir.fd, and the name there; None where it takes more. Nothing is asked of the lower:
        what lies there now is of no account.

        Raises:
            OSError: as RealDir.fd.
        """
        name = self._name_of(file)
        return None if name is None else (self._work.tmp.fd(), name[0].fd(), name[1])

    def begin(self) -> None:
        """Count the descriptors of one that is prepared, until `end`.

        Raises:
            OSError: ENFILE when too many are under way.
        """
        self._state.descriptors.take_for_copy()

    def end(self, temporary: bytes | None) -> None:
        """A prepared one is shown, or not to be shown any more.

        Args:
            temporary: its name in work, if it is there.
        """
        self._state.descriptors.give_back(PER_COPY)
        if temporary is not None:
            self._work.unlink(temporary)

    def made(self, file: File, device: int, number: int, *, times_kept: bool, leaves: bool) -> None:
        """It was made.

        Args:
            device, number: st_dev and st_ino of the copy.
            times_kept: the directory in the upper has the times that it had.
            leaves: as of `of`.
        """
        name = file.only_name
        assert name is not None
        directory = name[0]
        assert directory.upper is not None
        if not times_kept:
            self._state.log.warning(
                "the times of directory %r show that something was copied up into it", directory.name
            )
        directory.stale()  # its time of change is another, and its others where they could not be kept
        file.copied_up((directory.upper, name[1]), (self._numbers.device(device), number), pin=-1)
        file.absent_xattrs = NEEDS_NO_PATH if leaves else NO_CAPABILITY

    def show(self, file: File, temporary: bytes, fd: int) -> None:
        """Show a prepared copy of a file that is none of these any more.

        Args:
            temporary: its name in work.
            fd: a descriptor of it.

        Raises:
            OSError: nothing has changed then.
        """
        # It has one name, as the file had; the lower may have another there by now.
        show(self._state, file, temporary, os.fstat(fd))


def _is_nothing_else(state: State, upper: Upper, waits: bool) -> bool:
    """Whether a copy-up in this union can be nothing but system calls. To copy a little data takes less time than to do
    without (data.py), unless it has to be put on disk."""
    settings, capabilities = state.settings, upper.work.capabilities
    return (
        settings.identity.trivial
        and not settings.owner_optional
        and not (settings.metacopy and waits)
        and upper.layer.ownership is None
        and capabilities.xattr_prefix is not None
        and capabilities.noreplace
    )
