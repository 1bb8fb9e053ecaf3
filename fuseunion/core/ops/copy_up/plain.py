"""The copy-up of most small files: a plain file of a lower, beside a directory that is in the upper already.

Nothing has to be decided on the way: no stored owner, no map of ids, no second name, nobody who has it open, no disk
that anything would have to wait for. So whoever can make the system calls in one go (wire/native/plain/copy.c) gets
them from here, and says what came of it; what is not as it was believed to be is left to files.py.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

from fuseunion.core.format import xattr_names
from fuseunion.core.ids.identity import KEEP
from fuseunion.core.marks import origin_mark
from fuseunion.core.ops.attributes import NO_CHANGE, Change
from fuseunion.core.tree.file import File
from fuseunion.core.tree.place import InLower
from fuseunion.core.tree.state import State, Upper

AS_IT_IS = -1
"""A mode or a time that is not to be changed, as KEEP is an owner."""


class PlainCopy(NamedTuple):
    """What is to be done, for copy_plain.

    Attributes:
        device: st_dev of the file.
        lower, work, upper: descriptors of the directories, borrowed until the next call of the core.
        name, temporary, new_name: names in them.
        number: st_ino of it.
        uid, gid, mode, atime_ns, mtime_ns: of the copy.
        mark: the name of the origin mark.
        value: of it (origin_mark.template).
    """

    lower: int
    name: bytes
    device: int
    number: int
    work: int
    temporary: bytes
    upper: int
    new_name: bytes
    uid: int
    gid: int
    mode: int
    atime_ns: int
    mtime_ns: int
    mark: bytes
    value: bytes


def plain_copy(state: State, file: File, change: Change | None) -> PlainCopy | None:
    """The copy-up of a file with the change that made it necessary; None where it needs more than system calls.

    Raises:
        OSError: EROFS; as RealDir.fd.
    """
    upper = state.writable()
    wanted = change or NO_CHANGE
    name = file.only_name
    if name is None or not _is_nothing_else(state, upper) or not _is_plain(file) or not _is_simple(wanted):
        return None
    directory, new_name = name
    place, target, prefix = file.place, directory.upper, upper.work.capabilities.xattr_prefix
    if target is None or prefix is None or not isinstance(place, InLower):
        return None
    lower_fd, upper_fd = place.real.fd(), target.fd()
    if not place.real.has_as_descriptor(lower_fd):
        return None  # to open one closed the other
    return PlainCopy(
        lower_fd,
        place.name,
        place.device,
        place.number,
        upper.work.tmp.fd(),
        upper.work.new_name(),
        upper_fd,
        new_name,
        KEEP if wanted.uid is None else wanted.uid,
        KEEP if wanted.gid is None else wanted.gid,
        AS_IT_IS if wanted.mode is None else stat.S_IMODE(wanted.mode),
        AS_IT_IS if wanted.atime_ns is None else wanted.atime_ns,
        AS_IT_IS if wanted.mtime_ns is None else wanted.mtime_ns,
        prefix + xattr_names.UNION_ORIGIN,
        origin_mark.template(file.ino),
    )


def plainly_copied(state: State, file: File, device: int, number: int, *, times_kept: bool) -> None:
    """A plain copy was made.

    Args:
        device, number: st_dev and st_ino of the copy.
        times_kept: the directory in the upper has the times that it had.
    """
    name = file.only_name
    assert name is not None
    directory, new_name = name
    assert directory.upper is not None
    if not times_kept:
        state.log.warning("the times of directory %r show that something was copied up into it", directory.name)
    directory.stale()  # its times are others where they could not be kept
    file.copied_up((directory.upper, new_name), (state.numbers.device(device), number), pin=-1)


def _is_nothing_else(state: State, upper: Upper) -> bool:
    """Whether a copy-up in this union can be nothing but system calls, none of which waits."""
    settings = state.settings
    return (
        settings.identity.trivial
        and not settings.owner_optional
        and not settings.metacopy
        and upper.layer.ownership is None
        and upper.work.capabilities.noreplace
        and (settings.volatile or upper.work.capabilities.in_memory)
    )


def _is_plain(file: File) -> bool:
    place = file.place
    return (
        file.kind == stat.S_IFREG
        and isinstance(place, InLower)
        and file.data is None
        and file.lower_links is None
        and file.group is None
        and not file.handles
        and place.real.layer.ownership is None
    )


def _is_simple(change: Change) -> bool:
    return (
        change.size is None
        and not change.touch
        and not change.clear_capability
        and not (change.mode or 0) & (stat.S_ISUID | stat.S_ISGID)
        and (change.atime_ns or 0) >= 0
        and (change.mtime_ns or 0) >= 0
    )
