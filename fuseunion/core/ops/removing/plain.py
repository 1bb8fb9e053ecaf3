"""The removal of most files: what nothing but the upper takes part in.

No lower has the name, so that nothing has to be hidden; one name of the file is known, and leads to it in the upper;
the link index has nothing of it, and no owner is stored. So whoever can make the system calls in one go
(engines/fuse/wire/native/plain/remove.c) gets them from here, and says what came of it; what is not as it was believed
to be is left to remove.py.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.place import InUpper
from fuseunion.core.tree.state import State

_LOWERS = 2
"""With the upper's that is as many descriptors as are good at once (RealDir.fd)."""


class PlainRemoval(NamedTuple):
    """What is to be done, for remove_plain.

    Attributes:
        directory: a descriptor of the directory in the upper, borrowed until the next call of the core.
        name: in it.
        device, number, kind: st_dev, st_ino and the S_IFMT bits of the object.
        holds: it has to be held, because no descriptor of anybody keeps it.
        lowers: descriptors of the lowers' parts of the directory, of which none may have the name.
    """

    directory: int
    name: bytes
    device: int
    number: int
    kind: int
    holds: bool
    lowers: tuple[int, ...]


def plain_removal(directory: Directory, name: bytes) -> PlainRemoval | None:
    """The removal of a name; None where it needs more than system calls."""
    upper = directory.upper
    if upper is None:
        return None
    file = directory.children.get(name)
    if not isinstance(file, File) or not file.is_plainly_at(directory, name):
        return None
    layer, place = upper.layer, file.place
    if layer.ownership is not None or not layer.keeps_removed or upper.holds_the_mount:
        return None
    assert isinstance(place, InUpper)
    stack = _stack(directory, upper)
    if stack is None:
        return None
    return PlainRemoval(stack[0], name, place.device, place.number, file.kind, not file.handles, stack[1:])


def plain_removal_of_directory(directory: Directory, name: bytes) -> PlainRemoval | None:
    """As `plain_removal`, of a directory in which nothing is known to be."""
    upper, target = directory.upper, directory.children.get(name)
    if upper is None or not isinstance(target, Directory):
        return None
    real = target.upper
    if real is None or target.lowers or target.children or not target.nlookup:
        return None
    known = real.known_id
    if known is None or upper.layer.ownership is not None or upper.holds_the_mount:
        return None
    stack = _stack(directory, upper)
    return None if stack is None else PlainRemoval(stack[0], name, *known, stat.S_IFDIR, True, stack[1:])


def _stack(directory: Directory, upper: RealDir) -> tuple[int, ...] | None:
    """Descriptors of a directory's parts in the upper and in the lowers, as of RealDir.fd; None where one cannot be
    opened, or more are needed than are good at once."""
    lowers = directory.lowers
    if len(lowers) > _LOWERS or any(real.holds_the_mount for real in lowers):
        return None
    try:
        return (upper.fd(), *[real.fd() for real in lowers])
    except OSError:
        return None  # remove.py says what that means


def plainly_removed(directory: Directory, name: bytes, held: int) -> None:
    """A name was plainly removed.

    Args:
        held: the descriptor that holds the object from now on; -1 where who has it open does.
    """
    removed = directory.children.pop(name)
    directory.stale()
    if isinstance(removed, Directory):
        assert removed.upper is not None
        removed.upper.pin(held)
        removed.mark_removed()
    else:
        assert isinstance(removed, File)
        removed.lost_only_name(held)


def plainly_covered(state: State, directory: Directory, name: bytes) -> bool:
    """Remove a file of a lower that has no other name, by a whiteout where nothing else lies in the upper.

    Nothing is asked of the lower: one name of the file is known, and it has no other there (LowerLinks).

    Returns:
        False where more has to be done.

    Raises:
        OSError: EEXIST for what lies in the upper though nothing should; ENOSPC and the like. Nothing has changed then.
    """
    upper = directory.upper
    file = directory.children.get(name)
    if upper is None or not isinstance(file, File) or not file.is_plainly_lower(directory, name):
        return False
    state.writable().whiteouts.cover(upper, name)
    del directory.children[name]
    directory.stale()
    file.remove_name(directory, name)
    file.stale()
    return True
