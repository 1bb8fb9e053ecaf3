"""Going over an upper as data: every object that it holds, and every name that it hides.

Directories come before what they hold, names in the order of their bytes. What a mark means is the core's business
(Union.contents); owners, modes and attributes are those that a mount shows, and a file has the data that it shows.

A directory that was renamed by a redirect holds less than it shows: then everything beneath it comes too, as the lowers
have it, and the directory hides what they have under its new name. Without the lowers that directory, like a file
without data, cannot be told (IncompleteError).

Memory: the names of the directories on the way down, and what the core keeps of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.linux.objects.recognition import DiskId
from fuseunion.offline.layers.opening import View


class IncompleteError(Exception):
    """An object that cannot be told without the lowers.

    Args:
        path: of it.
        what: a redirect, or data that is elsewhere.
    """

    def __init__(self, path: bytes, what: str) -> None:
        super().__init__(path, what)
        self.path = path
        self.what = what


class Entry(NamedTuple):
    """One name; valid until the reader goes on.

    Attributes:
        path: from the root, without a slash in front; empty for the root.
        inode: the object, as the union shows it; None for a whiteout.
        directory: the one that the name is in; None for the root.
        opaque: of a directory: nothing shows in it that the lowers have under its path.
        whole: of a directory: everything that the union shows in it follows, not only what is in the upper.
    """

    path: bytes
    inode: Inode | None
    directory: Directory | None
    opaque: bool = False
    whole: bool = False

    @property
    def name(self) -> bytes:
        """The last part of its path."""
        return self.path.rpartition(b"/")[2]

    @property
    def is_whiteout(self) -> bool:
        """Whether the name is hidden, and nothing else."""
        return self.inode is None


def read(view: View) -> Iterator[Entry]:
    """Every object and every whiteout of an upper, the root first.

    Raises:
        IncompleteError: the lowers are needed.
        OSError: of the layers, with the path as its filename.
    """
    return _walk(view.union, Entry(b"", view.union.root, None), view)


def merged(union: Union) -> Iterator[Entry]:
    """Every object that a union shows, the root first.

    Raises:
        OSError: of the layers, with the path as its filename.
    """
    return _walk(union, Entry(b"", union.root, None, whole=True), None)


def below(union: Union, entry: Entry) -> Iterator[Entry]:
    """Every object that a union shows beneath a directory. Raises as `merged`."""
    walk = _walk(union, entry._replace(whole=True), None)
    next(walk)
    return walk


def _walk(union: Union, top: Entry, view: View | None) -> Iterator[Entry]:
    yield top
    # A list, and no recursion: a tree may be deeper than Python's stack.
    levels = [(_children(union, top, view), ExitStack())]
    try:
        while levels:
            entries, kept = levels[-1]
            entry = next(entries, None)
            if entry is None:
                levels.pop()
                kept.close()
                continue
            with union.held(entry.inode):
                yield entry
                if isinstance(entry.inode, Directory):
                    kept = ExitStack()
                    kept.enter_context(union.held(entry.inode))
                    levels.append((_children(union, entry, view), kept))
    finally:
        for _, kept in reversed(levels):
            kept.close()


def _children(union: Union, entry: Entry, view: View | None) -> Iterator[Entry]:
    directory = entry.inode
    assert isinstance(directory, Directory)
    if view is not None and not entry.whole:
        yield from _of_layer(view, entry, directory)
        return
    with named(entry.path):
        names = sorted(union.list_names(directory))
    for name in names:
        path = _join(entry.path, name)
        with named(path):
            inode = union.lookup(directory, name)
        if inode is not None:
            yield Entry(path, inode, directory, whole=True)


def _of_layer(view: View, entry: Entry, directory: Directory) -> Iterator[Entry]:
    contents = view.union.contents(directory, view.upper)
    while True:
        with named(entry.path):
            content = next(contents, None)
        if content is None:
            return
        path = _join(entry.path, content.name)
        if content.is_whiteout:
            yield Entry(path, None, directory)
            continue
        moved = content.redirect is not None
        if view.alone and (moved or content.lacks_data):
            raise IncompleteError(path, "was renamed by a redirect" if moved else "has its data in a lower (metacopy)")
        with named(path):
            inode = view.union.lookup(directory, content.name)
        if inode is not None:
            opaque = content.is_directory and (content.hides or moved)
            yield Entry(path, inode, directory, opaque, whole=moved)


def _join(way: bytes, name: bytes) -> bytes:
    return way + b"/" + name if way else name


@contextmanager
def named(path: bytes) -> Iterator[None]:
    """Let an error say of which object it is."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror, path) from None


# -- objects ---------------------------------------------------------------------------------------------------------


def xattrs_of(union: Union, inode: Inode) -> dict[bytes, bytes]:
    """The attributes of an object that a user sees, by name, sorted.

    Raises:
        OSError: of the layer.
    """
    return {name: union.getxattr(inode, name) for name in sorted(union.listxattr(inode))}


def identity(union: Union, inode: Inode) -> DiskId | None:
    """What all names of a file have in common; None for an object with one name, and for directories."""
    if not isinstance(inode, File) or union.stat(inode)[1] < 2:
        return None
    return inode.place.disk_id
