"""Making a tree, or an upper, object by object.

The directory that is filled is opened as the upper of a union over nothing, so that everything that a mount takes care
of is taken care of here: no link is followed and nothing outside is reached (RealDir), names and attributes that are
marks are refused or escaped, ownership is stored where it is asked for, what was closed is opened for a moment, and
nobody else has it mounted.

A directory gets its times, and the ACL that it hands on, when all is done (`finish`): what is made in it would change
the one, and inherit the other. Until then its owner may enter it and write there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from fuseunion.core.copying import copy_data
from fuseunion.core.copying.copy_data import Unshared
from fuseunion.core.format import xattr_names
from fuseunion.core.ids.identity import KEEP
from fuseunion.core.ops.attributes import Change
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.linux.os_error import os_error

_HOLE = 1 << 16
"""A piece of so many zeros becomes a hole."""

_ZEROS = bytes(_HOLE)

# What an ordinary user, or the root of a user namespace, cannot give, and what a filesystem has no place for.
_NOT_OURS = frozenset({errno.EPERM, errno.EINVAL, errno.EOVERFLOW, errno.EOPNOTSUPP})
_TOO_LONG = frozenset({errno.ERANGE, errno.E2BIG})
"""A name or a value that Linux has no attribute for (xattr(7))."""


_OF_THE_MACHINE = frozenset({b"security.selinux", b"security.SMACK64", b"security.ima", b"security.evm"})
"""What security modules give to an object by themselves."""


class Facts(NamedTuple):
    """What an object is to have.

    Attributes:
        mode: type and permissions.
        mtime_ns, atime_ns: nanoseconds; the second None for the same.
        xattrs: as a user sees them.
        rdev: of a device.
    """

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Mapping[bytes, bytes]
    rdev: int = 0
    atime_ns: int | None = None


class InTheWayError(Exception):
    """A name on the way to an object is no directory, and is not to be replaced.

    Args:
        path: of the name.
    """

    def __init__(self, path: bytes) -> None:
        super().__init__(path)
        self.path = path


class Builder:
    """Fills one directory.

    Args:
        union: the directory as its upper, over nothing.
        hides: what is removed is also hidden in the lowers that the directory will be mounted over.

    Attributes:
        may_replace: whether what lies at a path, and is no directory, becomes one for what is beneath it.
        lost: what could not be kept, as a reason, with how many objects it was.
    """

    def __init__(self, union: Union, *, hides: bool = False) -> None:
        self._union = union
        self._hides = hides
        self._dressed: dict[bytes, Facts] = {}
        self._unshared = Unshared()
        self._chain: list[tuple[bytes, Directory, ExitStack]] = []
        self.lost: dict[str, int] = {}
        self.may_replace: Callable[[bytes], bool] = lambda path: True

    def close(self) -> None:
        """Let go of everything, done or not."""
        self._leave(0)

    def finish(self) -> None:
        """Give directories what they get last, and put all on disk.

        Raises:
            OSError: of the filesystem.
        """
        for path in sorted(self._dressed, reverse=True):  # what lies in a directory before it
            directory = self.find_directory(path)
            if directory is not None:
                self._dress_at_last(directory, self._dressed[path])
        self._dressed.clear()
        self._leave(0)
        self._union.sync()

    # -- the way -----------------------------------------------------------------------------------------------------

    def find(self, path: bytes) -> Inode | None:
        """What is at a path, to be held; None where nothing is, or the way leads over what is no directory."""
        if not path:
            return self._union.root
        parent, _, name = path.rpartition(b"/")
        directory = self.find_directory(parent)
        return None if directory is None else self._union.lookup(directory, name)

    def find_directory(self, path: bytes) -> Directory | None:
        """The directory at a path, good until another is asked for; None where there is none."""
        try:
            return self._enter(path, makes=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _enter(self, path: bytes, *, makes: bool) -> Directory:
        """Go to a directory, one name at a time.

        Args:
            makes: what is not there, or is no directory, becomes one.

        Raises:
            InTheWayError; FileNotFoundError, NotADirectoryError where nothing is made; OSError.
        """
        names = path.split(b"/") if path else []
        common = 0
        while common < min(len(names), len(self._chain)) and names[common] == self._chain[common][0]:
            common += 1
        self._leave(common)
        here = self._chain[-1][1] if self._chain else self._union.root
        for depth in range(common, len(names)):
            name = names[depth]
            inode = self._union.lookup(here, name)
            if not isinstance(inode, Directory):
                way = b"/".join(names[: depth + 1])
                if not makes:
                    raise os_error(errno.ENOENT if inode is None else errno.ENOTDIR, way)
                if inode is not None:
                    with self._union.held(inode):
                        if not self.may_replace(way):
                            raise InTheWayError(way)
                        self._union.unlink(here, name)
                inode = self._made_directory(here, name)
            kept = ExitStack()
            kept.enter_context(self._union.held(inode))
            self._chain.append((name, inode, kept))
            here = inode
        return here

    def _leave(self, depth: int) -> None:
        while len(self._chain) > depth:
            self._chain.pop()[2].close()

    def _made_directory(self, parent: Directory, name: bytes) -> Directory:
        made = self._union.mkdir(parent, name, 0o755, self._union.own_ids)
        assert isinstance(made, Directory)
        return made

    # -- objects -----------------------------------------------------------------------------------------------------

    def directory(self, path: bytes, facts: Facts) -> None:
        """Make a directory, or give the one that is there what it is to have.

        Raises:
            InTheWayError; OSError: of the filesystem; EINVAL for a name that is a mark.
        """
        if path and self.find_directory(path) is None:
            parent, name = self._free_place(path)
            self._made_directory(parent, name)
        directory = self._enter(path, makes=False)
        self._dress(directory, facts, later=True)
        self._dressed[path] = facts

    def dress(self, path: bytes, facts: Facts) -> None:
        """Give a directory that is there what it is to have, at once.

        Raises:
            FileNotFoundError, NotADirectoryError; OSError: of the filesystem.
        """
        directory = self._enter(path, makes=False)
        self._dress(directory, facts, later=True)
        self._dress_at_last(directory, facts)

    def file(self, path: bytes, facts: Facts, size: int, data: Iterable[tuple[int, bytes]]) -> None:
        """Make a regular file in the place of whatever is there. Arguments and errors as of `directory`.

        Args:
            data: pieces of the content, each with its offset; what is between them is a hole.
        """
        directory, name = self._free_place(path)
        file, handle = self._union.create(directory, name, 0o600, self._union.own_ids)
        try:
            self._write(handle.fd, size, data)
            self._dress(file, facts)
        finally:
            self._union.release_file(handle)

    def copy(self, path: bytes, facts: Facts, source: int) -> None:
        """Make a regular file with the content of another, whose blocks it shares where that can be. Errors as `file`.

        Args:
            source: a descriptor of the other.
        """
        directory, name = self._free_place(path)
        file, handle = self._union.create(directory, name, 0o600, self._union.own_ids)
        try:
            st = os.fstat(source)
            copy_data.copy(source, handle.fd, st.st_size, st, self._unshared)
            self._dress(file, facts)
        finally:
            self._union.release_file(handle)

    def symlink(self, path: bytes, facts: Facts, target: bytes) -> None:
        """Make a symbolic link, as `file`."""
        directory, name = self._free_place(path)
        with self._new(self._union.symlink(directory, name, target, self._union.own_ids)) as inode:
            self._dress(inode, facts)

    def special(self, path: bytes, facts: Facts) -> None:
        """Make a device, fifo or socket, as `file`.

        Raises:
            PermissionError: a device that this user may not make, or a 0/0 character device, which is a whiteout.
        """
        directory, name = self._free_place(path)
        mode = stat.S_IFMT(facts.mode) | 0o600
        with self._new(self._union.mknod(directory, name, mode, facts.rdev, self._union.own_ids)) as inode:
            self._dress(inode, facts)

    def link(self, path: bytes, target: bytes) -> None:
        """Give a file one more name.

        Raises:
            OSError: ENOENT, EISDIR for the target; as `file`.
        """
        file = self.find(target)
        if file is None:
            raise os_error(errno.ENOENT, target)
        with self._union.held(file):
            if not isinstance(file, File):
                raise os_error(errno.EISDIR, target)
            if path == target:
                return
            directory, name = self._free_place(path)
            self._union.link(file, directory, name)

    def remove(self, path: bytes, *, hide: bool = True) -> None:
        """Remove a name with all that is beneath it.

        Args:
            hide: where names are hidden at all.

        Raises:
            OSError: of the filesystem.
        """
        parent, _, name = path.rpartition(b"/")
        hides = hide and self._hides
        if hides:
            directory: Directory | None = self._enter(parent, makes=True)
        else:
            directory = self.find_directory(parent)
        if directory is None:
            return
        self._remove(directory, name, path)
        if hides:
            self._union.cover(directory, name)

    def make_opaque(self, path: bytes) -> None:
        """Let nothing of the lowers show in a directory, where names are hidden at all."""
        if self._hides:
            self._union.make_opaque(self._enter(path, makes=True))

    def names(self, path: bytes) -> list[bytes]:
        """The names in a directory; none where there is none."""
        directory = self.find_directory(path)
        if directory is None:
            return []
        return [name for name in sorted(self._union.list_names(directory)) if self._is_there(directory, name)]

    def _is_there(self, directory: Directory, name: bytes) -> bool:
        inode = self._union.lookup(directory, name)
        with self._union.held(inode):
            return inode is not None

    def _forget(self, path: bytes) -> None:
        """A name is gone, with all that was to be done beneath it."""
        depth = path.count(b"/")
        if len(self._chain) > depth and b"/".join(link[0] for link in self._chain[: depth + 1]) == path:
            self._leave(depth)
        for known in [known for known in self._dressed if known == path or known.startswith(path + b"/")]:
            del self._dressed[known]

    def _free_place(self, path: bytes) -> tuple[Directory, bytes]:
        parent, _, name = path.rpartition(b"/")
        directory = self._enter(parent, makes=True)
        self._remove(directory, name, path)
        return directory, name

    def _remove(self, directory: Directory, name: bytes, path: bytes) -> None:
        there = self._union.lookup(directory, name)
        if there is None:
            return
        if isinstance(there, Directory):
            self._forget(path)
        with self._union.held(there):
            self._union.remove(directory, name)

    @contextmanager
    def _new(self, inode: Inode) -> Iterator[Inode]:
        with self._union.held(inode):
            yield inode

    @staticmethod
    def _write(fd: int, size: int, data: Iterable[tuple[int, bytes]]) -> None:
        for offset, piece in data:
            view = memoryview(piece)
            while view:
                part = view[:_HOLE]
                written = os.pwrite(fd, part, offset) if len(part) < _HOLE or part != _ZEROS else _HOLE
                offset += written
                view = view[written:]
        os.ftruncate(fd, size)

    # -- owner, mode, attributes, times ------------------------------------------------------------------------------

    def _dress(self, inode: Inode, facts: Facts, *, later: bool = False) -> None:
        """Give an object owner, attributes, mode and times.

        Args:
            later: a directory, which gets some of it at last.
        """
        union = self._union
        mode = stat.S_IMODE(facts.mode)
        st = union.stat(inode)[0]
        if (st.st_uid, st.st_gid) != (facts.uid, facts.gid):
            mode = self._give_owner(inode, facts, mode)
        has = union.listxattr(inode)
        for name in has:
            if name not in facts.xattrs and name not in _OF_THE_MACHINE:
                union.removexattr(inode, name)
        # The access ACL last: it may take the write permission that the attributes of a user need.
        for name in sorted(facts.xattrs, key=xattr_names.POSIX_ACL_ACCESS.__eq__):
            if not (later and name == xattr_names.POSIX_ACL_DEFAULT):
                self._give_attribute(inode, name, facts.xattrs[name])
        change = Change() if later else _times(facts)
        if not stat.S_ISLNK(facts.mode):
            # What is still to be filled stays open to us.
            change = change._replace(mode=mode | 0o700 if later else mode)
        union.setattr(inode, change)

    def _dress_at_last(self, directory: Directory, facts: Facts) -> None:
        mode = stat.S_IMODE(self._union.stat(directory)[0].st_mode)
        if mode != stat.S_IMODE(facts.mode):
            self._union.setattr(directory, Change(mode=mode & ~0o700 | facts.mode & 0o700))
        default = facts.xattrs.get(xattr_names.POSIX_ACL_DEFAULT)
        if default is not None:
            self._give_attribute(directory, xattr_names.POSIX_ACL_DEFAULT, default)
        self._union.setattr(directory, _times(facts))

    def _give_owner(self, inode: Inode, facts: Facts, mode: int) -> int:
        """Returns the mode that the object may have with the owner that it got."""
        for uid, gid in ((facts.uid, facts.gid), (KEEP, facts.gid)):
            try:
                self._union.setattr(inode, Change(uid=uid, gid=gid))
            except OSError as error:
                if error.errno not in _NOT_OURS:
                    raise
            else:
                break
        st = self._union.stat(inode)[0]
        if (st.st_uid, st.st_gid) == (facts.uid, facts.gid):
            return mode
        self._lose("the owner")
        # Else the bits would speak for another.
        lost = (stat.S_ISUID if st.st_uid != facts.uid else 0) | (stat.S_ISGID if st.st_gid != facts.gid else 0)
        return mode & ~lost

    def _give_attribute(self, inode: Inode, name: bytes, value: bytes) -> None:
        try:
            self._union.check_xattr_name(name)
            self._union.setxattr(inode, name, value)
        except OSError as error:
            if error.errno not in _NOT_OURS | _TOO_LONG:
                raise
            self._lose(f"the attribute {os.fsdecode(name)}")

    def _lose(self, what: str) -> None:
        self.lost[what] = self.lost.get(what, 0) + 1


def _times(facts: Facts) -> Change:
    atime_ns = facts.mtime_ns if facts.atime_ns is None else facts.atime_ns
    return Change(atime_ns=atime_ns, mtime_ns=facts.mtime_ns)
