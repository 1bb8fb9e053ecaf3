"""Where a name of the union comes from: what shows it, what takes part, what is hidden below."""

from __future__ import annotations

import errno
import stat
from contextlib import ExitStack
from enum import Enum
from typing import NamedTuple

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.format import xattr_names
from fuseunion.core.marks.marks import is_whiteout, marks_of
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.tree.lookup import lookup
from fuseunion.core.tree.state import State
from fuseunion.linux.os_error import os_error
from fuseunion.steps import Steps

_AT_ONCE = 16
"""Layers between two stops."""


class Role(Enum):
    """What an object of a layer is to a name of the union."""

    SHOWN = "shown"
    """Its data, for a file; its attributes, for a directory."""
    MERGED = "merged"
    """A directory whose names are shown too."""
    DATA = "data"
    """The data of a file whose attributes alone were copied up (metacopy)."""
    WHITEOUT = "whiteout"
    HIDDEN = "hidden"


class Part(NamedTuple):
    """An object of a layer.

    Attributes:
        upper: whether the layer is the upper.
        layer: its path, as messages name it.
        path: of the object in it, b"" for the root; None where the union keeps it under no name that is its own.
        kind: S_IFMT bits; 0 for a `.wh.` file.
    """

    role: Role
    upper: bool
    layer: str
    path: bytes | None
    kind: int


class Whereabouts(NamedTuple):
    """Where a name comes from.

    Attributes:
        inode: what it shows, which may be dropped at any time; None where it shows nothing.
        copied_up: whether that is a copy of a lower's object.
        parts: topmost first.
    """

    inode: Inode | None
    copied_up: bool
    parts: list[Part]


def whereabouts(state: State, path: bytes) -> Steps[Whereabouts]:
    """Where a path comes from.

    Args:
        path: from the root; no symbolic link in it is followed.

    Raises:
        OSError: ENOENT, ENOTDIR for what is not there on the way; EINVAL for `..`; as a lookup.
    """
    with ExitStack() as held:
        directory, name = yield from walk(state, path, held)
        if not name:
            parts = [_part(state, Role.MERGED, real, None, stat.S_IFDIR) for real in directory.layers()]
            return Whereabouts(directory, False, [parts[0]._replace(role=Role.SHOWN), *parts[1:]])
        inode = lookup(state, directory, name)
        held.enter_context(state.table.held(inode))
        parts = _shown(state, inode)
        seen = {id(real.layer) for real in inode.layers()} if isinstance(inode, Directory) else set()
        copied_up = inode is not None and _is_copy(inode)
        ended = False
        for count, real in enumerate(directory.layers()):
            st = real.stat(name)
            if st is None:
                if not ended and real.hides(name):
                    parts.append(_part(state, Role.WHITEOUT, real, b".wh." + name, 0))
                    ended = True
            elif is_whiteout(real, name, st):
                if not ended:
                    parts.append(_part(state, Role.WHITEOUT, real, name, stat.S_IFMT(st.st_mode)))
                ended = True
            elif id(real.layer) not in seen and not _is_there(state, parts, real, name):
                parts.append(_part(state, Role.HIDDEN, real, name, stat.S_IFMT(st.st_mode)))
            if count % _AT_ONCE == _AT_ONCE - 1:
                yield
        return Whereabouts(inode, copied_up, parts)


def walk(state: State, path: bytes, held: ExitStack) -> Steps[tuple[Directory, bytes]]:
    """The directory of the last name of a path, and that name; the root and b"" for the root itself.

    Args:
        held: keeps what is on the way in the table.

    Raises:
        OSError: as `whereabouts`.
    """
    names = names_of(path)
    directory = state.root
    for name in names[:-1]:
        inode = lookup(state, directory, name)
        if inode is None:
            raise os_error(errno.ENOENT, name)
        if not isinstance(inode, Directory):
            raise os_error(errno.ENOTDIR, name)
        held.enter_context(state.table.held(inode))
        directory = inode
        yield
    return directory, names[-1] if names else b""


def names_of(path: bytes) -> list[bytes]:
    """The names in a path from the root. Raises OSError: EINVAL for `..`."""
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise os_error(errno.EINVAL)
    return names


def lies_at(state: State, inode: Inode) -> Part | None:
    """What shows an inode; None for one that has no name."""
    return next(iter(_shown(state, inode)), None)


def _shown(state: State, inode: Inode | None) -> list[Part]:
    if isinstance(inode, Directory):
        first, *rest = inode.layers()
        return [
            _part(state, Role.SHOWN, first, None, stat.S_IFDIR),
            *(_part(state, Role.MERGED, real, None, stat.S_IFDIR) for real in rest),
        ]
    if not isinstance(inode, File):
        return []
    location = inode.location()
    if location is None:
        return []
    parts = [_part(state, Role.SHOWN, *location, inode.kind)]
    if inode.data is not None:
        parts.append(_part(state, Role.DATA, *inode.data.location, inode.kind))
    return parts


def _is_there(state: State, parts: list[Part], real: RealDir, name: bytes) -> bool:
    path = path_in_layer(state, real, name)
    return any(part.layer == real.layer.label and part.path == path for part in parts)


def _is_copy(inode: Inode) -> bool:
    if isinstance(inode, Directory):
        return inode.upper is not None and bool(inode.lowers)
    location = inode.location() if isinstance(inode, File) and inode.has_upper else None
    if location is None:
        return False
    real, name = location
    st = real.stat(name)
    return st is not None and xattr_names.UNION_ORIGIN in marks_of(real, name, st)


def _part(state: State, role: Role, real: RealDir, name: bytes | None, kind: int) -> Part:
    layer = real.layer
    return Part(role, layer.writable, layer.label, path_in_layer(state, real, name), kind)


def path_in_layer(state: State, real: RealDir, name: bytes | None) -> bytes | None:
    """The path of a name in a real directory, or of the directory itself, from the root of its layer; None in the
    work directory, which is beside the upper."""
    root, names = real.way()
    upper = state.upper.layer.root if state.upper is not None else None
    if root is upper or root in state.root.lowers:
        return b"/".join(names if name is None else [*names, name])
    return None
