"""What an upper changes of its lowers: the union with it beside the union without it.

Only directories that the upper takes part in are looked into, and only what is not the same object on disk is compared.
So a name of a hard-linked file of a lower that has changed with another name of it, elsewhere, is not among the changes
until it was looked up in a mount (docs/on-disk-format.md, the hard-link index).

An upper alone tells what it holds and what it hides. Whether the lowers have something of that name it cannot tell.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from enum import Enum
from typing import NamedTuple

from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.offline.layers import reader
from fuseunion.offline.layers.opening import View
from fuseunion.offline.layers.reader import named

_PIECE = 1 << 18


class Kind(Enum):
    """What was done with a name."""

    ADDED = "added"
    MODIFIED = "modified"
    REPLACED = "replaced"
    """By an object of another type."""
    DELETED = "deleted"
    PRESENT = "present"
    """In the upper; whether a lower has it is not known."""


class Aspect(Enum):
    """What differs in an object that was modified."""

    CONTENT = "content"
    TARGET = "target"
    DEVICE = "device"
    MODE = "mode"
    OWNER = "owner"
    ATTRIBUTES = "attributes"
    OPAQUE = "opaque"
    """A directory that hides all that the lowers have in it; told of an upper alone."""


class Change(NamedTuple):
    """One change; the inodes are good until the next one is asked for.

    Attributes:
        path: from the root of the union, without a slash in front; `.` for the root itself.
        aspects: of what was modified.
        before, after: lstat; None where there is nothing, or it is not known.
        was, now: the same objects in the union without the upper, and with it.
    """

    kind: Kind
    path: bytes
    aspects: tuple[Aspect, ...] = ()
    before: os.stat_result | None = None
    after: os.stat_result | None = None
    was: Inode | None = None
    now: Inode | None = None


def of_upper(view: View) -> Iterator[Change]:
    """What an upper holds and hides.

    Raises:
        IncompleteError, OSError: as reader.read.
    """
    for entry in reader.read(view):
        if entry.inode is None:
            yield Change(Kind.DELETED, entry.path)
        elif entry.path:
            aspects = (Aspect.OPAQUE,) if entry.opaque else ()
            yield Change(Kind.PRESENT, entry.path, aspects, None, view.union.stat(entry.inode)[0], None, entry.inode)


def changes(before: Union, view: View) -> Iterator[Change]:
    """What an upper changes, parents first, in the order of the names.

    Of a directory that is gone only itself is told; of a new one everything in it.

    Args:
        before: the lowers alone.
        view: the upper over the same lowers.

    Raises:
        OSError: of the layers, with the path as its filename.
    """
    return _Comparison(before, view).all()


class _Comparison:
    def __init__(self, before: Union, view: View) -> None:
        self._before = before
        self._after = view.union
        self._upper = view.upper

    def all(self) -> Iterator[Change]:
        """Every change."""
        was, now = self._before.root, self._after.root
        aspects = self.differences(was, now)
        if aspects:
            yield self._change(Kind.MODIFIED, b".", was, now, aspects)
        # A list, and no recursion: a tree may be deeper than Python's stack.
        levels = [(self._pairs(was, now, b""), ExitStack())]
        try:
            while levels:
                pairs, kept = levels[-1]
                pair = next(pairs, None)
                if pair is None:
                    levels.pop()
                    kept.close()
                    continue
                path, old, new = pair
                with self._before.held(old), self._after.held(new):
                    with named(path):
                        change = self._of(path, old, new)
                    if change is not None:
                        yield change
                    if isinstance(new, Directory):
                        kept = ExitStack()
                        kept.enter_context(self._before.held(old))
                        kept.enter_context(self._after.held(new))
                        levels.append((self._pairs(old, new, path), kept))
        finally:
            for _, kept in reversed(levels):
                kept.close()

    def _pairs(
        self, was: Inode | None, now: Directory, way: bytes
    ) -> Iterator[tuple[bytes, Inode | None, Inode | None]]:
        """Every name in a directory with what it has without the upper and with it."""
        old = was if isinstance(was, Directory) else None
        with named(way):
            if old is not None and self._is_untouched(old, now):
                return
            names = {*self._after.list_names(now), *(() if old is None else self._before.list_names(old))}
        for name in sorted(names):
            path = way + b"/" + name if way else name
            with named(path):
                found = None if old is None else self._before.lookup(old, name)
                there = self._after.lookup(now, name)
            yield path, found, there

    def _is_untouched(self, was: Directory, now: Directory) -> bool:
        """Whether a directory is the same ones of the lowers, and so all that is in it."""
        old, new = was.layers(), now.layers()
        if len(old) != len(new) or any(real.layer is self._upper for real in new):
            return False
        return all(os.path.samestat(a.own_stat(), b.own_stat()) for a, b in zip(old, new, strict=True))

    def _of(self, path: bytes, was: Inode | None, now: Inode | None) -> Change | None:
        if now is None:
            return None if was is None else self._change(Kind.DELETED, path, was, None)
        if was is None:
            return self._change(Kind.ADDED, path, None, now)
        if was.kind != now.kind:
            return self._change(Kind.REPLACED, path, was, now)
        aspects = self.differences(was, now)
        return self._change(Kind.MODIFIED, path, was, now, aspects) if aspects else None

    def _change(
        self, kind: Kind, path: bytes, was: Inode | None, now: Inode | None, aspects: tuple[Aspect, ...] = ()
    ) -> Change:
        before = None if was is None else self._before.stat(was)[0]
        after = None if now is None else self._after.stat(now)[0]
        return Change(kind, path, aspects, before, after, was, now)

    # -- one object --------------------------------------------------------------------------------------------------

    def differences(self, was: Inode, now: Inode) -> tuple[Aspect, ...]:
        """What differs in an object that has the same type."""
        if _is_same(was, now):
            return ()
        old, new = self._before.stat(was)[0], self._after.stat(now)[0]
        found = []
        if isinstance(was, File) and isinstance(now, File):
            if stat.S_ISREG(new.st_mode):
                if old.st_size != new.st_size or self._content_differs(was, now):
                    found.append(Aspect.CONTENT)
            elif stat.S_ISLNK(new.st_mode):
                if self._before.readlink(was) != self._after.readlink(now):
                    found.append(Aspect.TARGET)
            elif old.st_rdev != new.st_rdev:
                found.append(Aspect.DEVICE)
        if old.st_mode != new.st_mode:
            found.append(Aspect.MODE)
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            found.append(Aspect.OWNER)
        if reader.xattrs_of(self._before, was) != reader.xattrs_of(self._after, now):
            found.append(Aspect.ATTRIBUTES)
        return tuple(found)

    def _content_differs(self, was: File, now: File) -> bool:
        old = self._before.open_for_a_moment(was)
        try:
            new = self._after.open_for_a_moment(now)
            try:
                offset = 0
                while True:
                    one, other = os.pread(old, _PIECE, offset), os.pread(new, _PIECE, offset)
                    if one != other:
                        return True
                    if not one:
                        return False
                    offset += len(one)
            finally:
                os.close(new)
        finally:
            os.close(old)


def _is_same(was: Inode, now: Inode) -> bool:
    """Whether both unions show one object of a lower."""
    if isinstance(was, File) and isinstance(now, File):
        return was.place.disk_id == now.place.disk_id
    if isinstance(was, Directory) and isinstance(now, Directory):
        return os.path.samestat(was.real_stat(), now.real_stat())
    return False


def is_equal(before: Union, view: View, was: Inode, now: Inode) -> bool:
    """Whether an object is the same without the upper as with it, times of modification included.

    Raises:
        OSError: of the layers.
    """
    old, new = before.stat(was)[0], view.union.stat(now)[0]
    if was.kind != now.kind or old.st_mtime_ns != new.st_mtime_ns:
        return False
    return not _Comparison(before, view).differences(was, now)
