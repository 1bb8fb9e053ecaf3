"""Finding what an upper changes: the union with it beside the union without it.

Both are opened read-only through the core, and only directories that the upper takes part in are looked into.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

from fuseunion.core.disk.layer import Layer
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.mounting.assembly import build_union, open_layers
from fuseunion.mounting.options import Form, Options
from fuseunion.mounting.prepared import Prepared

_PIECE = 1 << 18

ADDED, MODIFIED, DELETED = "added", "modified", "deleted"


def changes(lowers: Sequence[int], upper: int, options: Options) -> dict[str, list[str]]:
    """What the upper changes.

    Args:
        lowers: descriptors of the lower directories, topmost first; they stay the caller's, as does the next.
        upper: of the upper directory.
        options: of the mount; of them count what is shown as whose.
    Returns:
        Paths without a slash in front, sorted, under the names of the fields of Changes.
    Raises:
        OSError, UserError: a layer cannot be read.
    """
    # One layer of the second union; what is stored of owners in the lowers is shown in both.
    before = _opened(lowers, options)
    try:
        after = _opened([upper, *lowers], options)
        try:
            found: dict[str, list[str]] = {ADDED: [], MODIFIED: [], DELETED: []}
            comparison = _Comparison(before, after)
            if comparison.differ(before.root, after.root):
                found[MODIFIED].append(".")
            for kind, path in comparison.of_directories(before.root, after.root, b""):
                found[kind].append(os.fsdecode(path))
            return {kind: sorted(paths) for kind, paths in found.items()}
        finally:
            after.close()
    finally:
        before.close()


def _opened(layers: Sequence[int], options: Options) -> Union:
    """A read-only union of directories."""
    prepared = Prepared(options.target, Form.PLAIN)
    try:
        for fd in layers:
            own = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            prepared.lowers.append(prepared.opened(own, os.readlink(f"/proc/self/fd/{fd}")))
        return build_union(open_layers(prepared, options), options, posix_acl=False)
    finally:
        prepared.close()


class _Comparison:
    """Compares what two unions show in one place.

    Args:
        before: without the upper.
        after: with it, as its topmost layer.
    """

    def __init__(self, before: Union, after: Union) -> None:
        self._before = before
        self._after = after
        self._upper: Layer = after.lowers[0]

    def of_directories(self, old: Directory, new: Directory, way: bytes) -> Iterator[tuple[str, bytes]]:
        """Everything that differs in a directory that both have."""
        if not any(real.layer is self._upper for real in new.layers()):
            return  # it is the lowers' alone
        names = {*self._before.list_names(old), *self._after.list_names(new)}
        for name in sorted(names):
            was, now = self._before.lookup(old, name), self._after.lookup(new, name)
            with self._before.held(was), self._after.held(now):
                yield from self._of_name(was, now, way + b"/" + name if way else name)

    def _of_name(self, was: Inode | None, now: Inode | None, path: bytes) -> Iterator[tuple[str, bytes]]:
        if was is None and now is not None:
            yield from self._added(now, path)
        elif was is not None and now is None:
            yield DELETED, path
        elif isinstance(was, Directory) and isinstance(now, Directory):
            if self.differ(was, now):
                yield MODIFIED, path
            yield from self.of_directories(was, now, path)
        elif was is not None and now is not None:
            if self.differ(was, now):
                yield MODIFIED, path
            if isinstance(now, Directory):
                yield from self._all_in(now, path)

    def _added(self, new: Inode, path: bytes) -> Iterator[tuple[str, bytes]]:
        yield ADDED, path
        if isinstance(new, Directory):
            yield from self._all_in(new, path)

    def _all_in(self, new: Directory, way: bytes) -> Iterator[tuple[str, bytes]]:
        for name in sorted(self._after.list_names(new)):
            inode = self._after.lookup(new, name)
            with self._after.held(inode):
                if inode is not None:
                    yield from self._added(inode, way + b"/" + name)

    def differ(self, was: Inode, now: Inode) -> bool:
        """Whether type, mode, owner, attributes, device, target or content are others."""
        old, new = self._before.stat(was)[0], self._after.stat(now)[0]
        if (old.st_mode, old.st_uid, old.st_gid) != (new.st_mode, new.st_uid, new.st_gid):
            return True
        if isinstance(was, File) and isinstance(now, File):
            if not stat.S_ISREG(new.st_mode):
                if old.st_rdev != new.st_rdev:
                    return True
                if stat.S_ISLNK(new.st_mode) and self._before.readlink(was) != self._after.readlink(now):
                    return True
            elif old.st_size != new.st_size or self._content_differs(was, now):
                return True
        return self._attributes(self._before, was) != self._attributes(self._after, now)

    @staticmethod
    def _attributes(union: Union, inode: Inode) -> dict[bytes, bytes]:
        return {name: union.getxattr(inode, name) for name in union.listxattr(inode)}

    def _content_differs(self, was: File, now: File) -> bool:
        old = self._before.open(was, os.O_RDONLY)
        try:
            new = self._after.open(now, os.O_RDONLY)
            try:
                offset = 0
                while True:
                    one, other = (os.pread(handle.fd, _PIECE, offset) for handle in (old, new))
                    if one != other:
                        return True
                    if not one:
                        return False
                    offset += len(one)
            finally:
                self._after.release_file(new)
        finally:
            self._before.release_file(old)
