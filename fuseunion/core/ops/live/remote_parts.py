"""What an operation is going to ask remote layers for (core/disk/remote.py).

No more than that: what a layer above decides alone is not held up by one below that does not answer.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.remote import Asked
from fuseunion.core.marks.marks import is_opaque, marks_of
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.tree.place import Location


def remote_parts(inode: Inode, name: bytes, *, whole: bool) -> list[Asked]:
    """The parts of an inode, or of a name in a directory, that lie in remote layers.

    Args:
        name: b"" for the inode itself.
        whole: all layers are asked, as for a listing, or for what is to have the name; else those that a lookup asks.

    Raises:
        OSError: of the layers that are not remote.
    """
    asked = [Asked.of(real, name) for real, name in _locations(inode, name, whole)]
    return [one for one in asked if one is not None]


def _locations(inode: Inode, name: bytes, whole: bool) -> Iterable[Location]:
    if isinstance(inode, Directory):
        if not name:
            return [(real, b"") for real in (inode.layers() if whole else (inode.top,))]
        child = inode.children.get(name)
        if child is not None and not whole and not inode.exchanged:
            return _locations(child, b"", whole)
        return [(real, name) for real in (inode.layers() if whole else _until_decided(inode, name))]
    if name or not isinstance(inode, File):
        return []
    place, data = inode.location(), inode.data
    return [location for location in (place, None if data is None else data.location) if location is not None]


def _until_decided(directory: Directory, name: bytes) -> Iterator[RealDir]:
    """The layers of a directory, down to the first that is not remote and hides what those below have of a name."""
    for real in directory.layers():
        yield real
        if real.layer.remote:
            continue
        st = real.stat(name)
        if st is not None and (
            not stat.S_ISDIR(st.st_mode) or is_opaque(real.child(name, st), marks_of(real, name, st))
        ):
            return
        if real.hides(name):
            return
