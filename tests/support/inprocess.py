"""The core without a mount: a union over directories of the test, operations as one call each, and a snapshot."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fuseunion.core.disk.descriptors import Descriptors
from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.work import WorkDirectory
from fuseunion.core.ids.identity import IDENTITY, Identity
from fuseunion.core.ops.attributes import Change
from fuseunion.core.ops.create import Owner
from fuseunion.core.ownership.store_choice import choose, detect
from fuseunion.core.ownership.stored_names import OverrideName
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.tree.state import Settings
from fuseunion.core.union import Union
from fuseunion.steps import in_one_piece


def own() -> Owner:
    """The user who runs the test makes an object."""
    return Owner(os.geteuid(), os.getegid(), 0o022)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


class InProcess:
    """A union driven by paths, the way the kernel would drive it: one component at a time."""

    def __init__(self, union: Union) -> None:
        self.union = union
        self._told: dict[int, int] = {}

    def find(self, path: str) -> Inode:
        """The inode of a path below the root, remembered until `forget`; FileNotFoundError when there is none."""
        inode: Inode = self.union.root
        for name in os.fsencode(path).split(b"/"):
            if not name:
                continue
            assert isinstance(inode, Directory), path
            below = self.union.lookup(inode, name)
            if below is None:
                raise FileNotFoundError(2, os.strerror(2), path)
            self.union.complete_links(below, inode, name)
            inode = self._remember(below)
        return inode

    def _remember(self, inode: Inode) -> Inode:
        self.union.remember(inode)
        self._told[inode.ino] = self._told.get(inode.ino, 0) + 1
        return inode

    def forget(self) -> None:
        """Forget every inode, as the kernel does when it drops its caches."""
        for ino, count in self._told.items():
            self.union.forget(ino, count)
        self._told.clear()

    def _split(self, path: str) -> tuple[Directory, bytes]:
        parent, _, name = path.rpartition("/")
        directory = self.find(parent)
        assert isinstance(directory, Directory)
        return directory, os.fsencode(name)

    def copied(self, path: str) -> Inode:
        """The inode of a path, copied up if it is a file."""
        inode = self.find(path)
        if isinstance(inode, File):
            self.copy(inode)
        return inode

    def copy(self, file: File, change: Change | None = None) -> bool:
        """Copy a file up; True when the change was made with the copy."""
        if file.in_upper:
            return False
        job = self.union.copy_job(file, change)
        if job is not None:
            try:
                job.move()
                job.publish()
            finally:
                job.close()
        return True

    def write(self, path: str, data: bytes, offset: int = 0) -> None:
        file = self.copied(path)
        assert isinstance(file, File)
        handle = self.union.open(file, os.O_RDWR)
        try:
            self.union.write(handle, data, offset)
        finally:
            self.union.release_file(handle)

    def read(self, path: str) -> bytes:
        file = self.find(path)
        assert isinstance(file, File)
        handle = self.union.open(file, os.O_RDONLY)
        try:
            return os.pread(handle.fd, 1 << 24, 0)
        finally:
            self.union.release_file(handle)

    def create(self, path: str, data: bytes = b"", mode: int = 0o644) -> None:
        file, handle = self.union.create(*self._split(path), mode, own())
        self._remember(file)
        try:
            self.union.write(handle, data, 0)
        finally:
            self.union.release_file(handle)

    def mkdir(self, path: str) -> None:
        self._remember(self.union.mkdir(*self._split(path), stat.S_IFDIR | 0o755, own()))

    def mknod(self, path: str, mode: int, rdev: int = 0, owner: Owner | None = None) -> None:
        self._remember(self.union.mknod(*self._split(path), mode, rdev, owner or own()))

    def symlink(self, target: str, path: str) -> None:
        self._remember(self.union.symlink(*self._split(path), os.fsencode(target), own()))

    def link(self, source: str, path: str) -> None:
        file = self.copied(source)
        assert isinstance(file, File)
        self._remember(self.union.link(file, *self._split(path)))

    def unlink(self, path: str) -> None:
        self.union.unlink(*self._split(path))

    def rmdir(self, path: str) -> None:
        in_one_piece(self.union.rmdir(*self._split(path)))

    def rename(self, source: str, target: str, flags: int = 0) -> None:
        ends = *self._split(source), *self._split(target)
        self.find(source)
        if not flags and self.union.renamed_at_once(*ends):
            return
        sources = [source, target] if flags & 2 else [source]
        for path in sources:
            for files in self.union.make_movable(self.find(path)):
                for file in files or ():
                    self.copy(file)
        self.union.rename(*ends, flags)

    def setattr(self, path: str, change: Change) -> None:
        inode = self.find(path)
        if not isinstance(inode, File) or not self.copy(inode, change):
            self.union.setattr(inode, change)

    def setxattr(self, path: str, name: bytes, value: bytes) -> None:
        self.union.setxattr(self.copied(path), name, value)

    def names(self, path: str) -> list[str]:
        directory = self.find(path)
        assert isinstance(directory, Directory)
        handle = self.union.opendir(directory)
        try:
            shown = []
            for name in in_one_piece(self.union.names(handle, again=True)):
                inode = self.union.lookup(directory, name)
                if inode is not None:
                    self.union.complete_links(inode, directory, name)
                    self._remember(inode)
                    shown.append(os.fsdecode(name))
            return sorted(shown)
        finally:
            self.union.release_directory(handle)

    def tree(self, path: str = "", *, numbers: bool = False) -> dict[str, tuple[object, ...]]:
        """Everything that is seen below a path: kind, mode, owner, content or target, xattrs, link count of files."""
        seen: dict[str, tuple[object, ...]] = {}
        for name in self.names(path):
            child = f"{path}/{name}"
            inode = self.find(child)
            st, nlink = self.union.stat(inode)
            facts: list[object] = [stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid]
            if numbers:
                facts.append(inode.ino)
            facts.append(tuple((x, self.union.getxattr(inode, x)) for x in sorted(self.union.listxattr(inode))))
            if isinstance(inode, Directory):
                seen[child] = tuple(facts)
                seen.update(self.tree(child, numbers=numbers))
                continue
            facts.append(nlink)
            if stat.S_ISREG(st.st_mode):
                facts += [st.st_mtime_ns, self.read(child)]
            elif stat.S_ISLNK(st.st_mode) and isinstance(inode, File):
                facts.append(self.union.readlink(inode))
            seen[child] = tuple(facts)
        return seen


@contextmanager
def in_process(
    lowers: Sequence[Path],
    upper: Path | None,
    work: Path | None,
    *,
    allow_devices: bool = True,
    store: OverrideName | None = None,
    identity: Identity = IDENTITY,
    volatile: bool = False,
    redirect_dir: bool = False,
    metacopy: bool = False,
    static_nlink: bool = False,
) -> Iterator[InProcess]:
    """Open a union over existing directories, topmost lower first; closed at the end."""
    descriptors = Descriptors()
    layers = [Layer(_open(path), writable=False, label=str(path), descriptors=descriptors) for path in lowers]
    for layer in layers:
        layer.ownership = detect(layer.root_fd)
    top = area = None
    if upper is not None:
        top = Layer(_open(upper), writable=True, label=str(upper), descriptors=descriptors)
    if work is not None:
        area = WorkDirectory(_open(work), str(work), allow_devices=allow_devices, descriptors=descriptors)
    if top is not None and area is not None:
        top.ownership = choose(top.root_fd, store, area.layer.root_fd, [layer.root_fd for layer in layers])
    settings = Settings(
        umask_pending=True,
        identity=identity,
        volatile=volatile,
        redirect_dir=redirect_dir,
        metacopy=metacopy,
        static_nlink=static_nlink,
    )
    union = Union(layers, top, area, settings)
    try:
        yield InProcess(union)
    finally:
        union.close()
