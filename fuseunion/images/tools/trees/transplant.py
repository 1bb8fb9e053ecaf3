"""A tree as it is in another place: data with its holes, owners, modes, times, attributes, devices, whiteouts, links.

An upper is more than its files: a whiteout is a device 0/0, an opaque directory is an attribute, and names that share
an inode belong together. So an object is either there with all that it had, or it is counted among what could not be
kept, and the caller says so. Marks of an overlay that could not be kept would bring back what was deleted: they are an
error.

The source may be anybody's: it is gone through as fuseunion/offline/walk.py does, from descriptors, without following
a link. The target is ours alone until it is whole.

Owner and mode of a file with several names are set when all of them are there: the kernel refuses a second name to a
set-user-ID file of somebody else (proc(5), protected_hardlinks).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from fuseunion.core.copying.copy_data import Unshared
from fuseunion.core.copying.copy_data import copy as copy_data
from fuseunion.core.format import xattr_names
from fuseunion.errors import ExitCode, UserError
from fuseunion.images.tools import cloning
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.offline.walk import Found, walk

_REFUSED = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.ENODATA, errno.EOVERFLOW})
"""What an attribute or an owner that is not ours to give is answered with."""

_OF_A_MOUNT = frozenset(prefix + xattr_names.MOUNTED for prefix in xattr_names.PREFIXES)
"""With which work directory an upper was mounted last: that of the copy is another."""

_SET_ID = stat.S_ISUID | stat.S_ISGID
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Lost:
    """What could not be kept.

    Attributes:
        owners, devices, attributes: objects that it concerns.
        count: objects that are there, in all.
    """

    count: int = 0
    owners: int = 0
    devices: int = 0
    attributes: int = 0

    def lines(self) -> list[str]:
        """For messages, one thing each."""
        said = {
            "owner": (self.owners, "kept no owner of their own and no set-id bits"),
            "device": (self.devices, "are devices, which only root can make, and are missing"),
            "attribute": (self.attributes, "lost extended attributes that only root may set, or see"),
        }
        return [f"{number} of {self.count} objects {what}" for number, what in said.values() if number]


@dataclass(slots=True)
class _Directory:
    """A directory of the target that is still being filled."""

    path: bytes
    fd: int
    st: os.stat_result
    attributes: dict[bytes, bytes]


@dataclass(slots=True)
class Transplant:
    """Copies one tree after another below one target, so that links between them stay links.

    Attributes:
        target_fd: of a directory that nobody else can write to.
        report: told how many objects there are.
    """

    target_fd: int
    report: Callable[[int], None] = lambda done: None
    lost: Lost = field(default_factory=Lost)
    _names: dict[tuple[int, int], bytes] = field(default_factory=dict)
    _waiting: dict[tuple[int, int], tuple[bytes, os.stat_result, dict[bytes, bytes]]] = field(default_factory=dict)
    _open: list[_Directory] = field(default_factory=list)
    _unshared: Unshared = field(default_factory=Unshared)
    _top: int = -1

    def add(self, source_fd: int, name: bytes) -> None:
        """Copy a tree.

        Args:
            source_fd: of its root.
            name: the path in the target of the directory that it becomes; made, unless it is there.

        Raises:
            OSError: ENOSPC, EDQUOT, EACCES, EIO, with the path in the source as its filename.
            UserError: LAYERS: a mark of an overlay cannot be kept.
        """
        self._top = self._reach(os.path.dirname(name))
        try:
            for found in walk(source_fd):
                path = name + b"/" + found.path if found.path else name
                try:
                    self._enter(path)
                    self._put(found, path)
                except OSError as error:
                    raise OSError(error.errno, error.strerror, found.path or b".") from None
                self.lost.count += 1
                self.report(self.lost.count)
            while self._open:
                self._close_last()
            self._finish_linked()
        finally:
            os.close(self._top)
            while self._open:
                os.close(self._open.pop().fd)

    def _enter(self, path: bytes) -> None:
        """Finish the directories that the walk has left."""
        while self._open and not path.startswith(self._open[-1].path + b"/"):
            self._close_last()

    def _close_last(self) -> None:
        done = self._open[-1]
        self._dress(RealObject(done.fd), done.st, done.attributes)
        os.close(self._open.pop().fd)

    def _here(self) -> int:
        return self._open[-1].fd if self._open else self._top

    def _put(self, found: Found, path: bytes) -> None:
        st, name, here = found.st, os.path.basename(path), self._here()
        identity = (st.st_dev, st.st_ino)
        several = st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode)
        if several and identity in self._names:
            self._link(self._names[identity], here, name)
            return
        attributes = self._attributes(found)
        if stat.S_ISDIR(st.st_mode):
            try:
                os.mkdir(name, 0o700, dir_fd=here)
            except FileExistsError:
                if self._open:
                    raise  # only the top may be there: nothing is written into what somebody else has put there
            self._open.append(_Directory(path, os.open(name, _DIRECTORY, dir_fd=here), st, attributes))
            return
        if not self._make(found, here, name):
            return
        if several:
            self._names[identity] = path
            self._waiting[identity] = path, st, attributes
        else:
            self._dress(RealObject(here, name), st, attributes)

    def _make(self, found: Found, here: int, name: bytes) -> bool:
        """One object that is no directory; False where it cannot be made here."""
        st = found.st
        if stat.S_ISREG(st.st_mode):
            self._copy(found, here, name)
        elif stat.S_ISLNK(st.st_mode):
            os.symlink(found.held.readlink(), name, dir_fd=here)
        else:
            try:
                os.mknod(name, stat.S_IFMT(st.st_mode) | 0o600, st.st_rdev, dir_fd=here)
            except PermissionError:
                if st.st_rdev == 0:
                    raise  # a whiteout: without it what was deleted comes back
                self.lost.devices += 1
                return False
        return True

    def _copy(self, found: Found, here: int, name: bytes) -> None:
        source, st = found.held.open_regular(os.O_RDONLY | os.O_CLOEXEC)
        try:
            target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=here)
            try:
                if st.st_blocks * 512 >= st.st_size:
                    copy_data(source, target, st.st_size, st, self._unshared)
                elif not cloning.share(source, target):
                    # Where a filesystem does not tell where its holes are (fuse2fs), zeros become holes again.
                    cloning.copy(source, target, digs=True)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _attributes(self, found: Found) -> dict[bytes, bytes]:
        values = {}
        for name in found.held.listxattr():
            if name in _OF_A_MOUNT:
                continue
            try:
                values[name] = found.held.getxattr(name)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                self._lose(found.path, name)
        return values

    def _lose(self, path: bytes, name: bytes) -> None:
        if name.startswith(xattr_names.PREFIXES):
            where = os.fsdecode(path or b".")
            raise UserError(
                f"'{where}' has the mark {os.fsdecode(name)} of an overlay, which only root may see or set; run it as"
                " root",
                ExitCode.LAYERS,
            )
        self.lost.attributes += 1

    def _link(self, first: bytes, here: int, name: bytes) -> None:
        parent = self._reach(os.path.dirname(first))
        try:
            os.link(os.path.basename(first), name, src_dir_fd=parent, dst_dir_fd=here, follow_symlinks=False)
        finally:
            os.close(parent)

    def _reach(self, path: bytes) -> int:
        """A directory of the target, one name at a time: a path may be longer than the kernel takes."""
        fd = os.dup(self.target_fd)
        for name in filter(None, path.split(b"/")):
            try:
                below = os.open(name, _DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def _finish_linked(self) -> None:
        for path, st, attributes in self._waiting.values():
            parent = self._reach(os.path.dirname(path))
            try:
                self._dress(RealObject(parent, os.path.basename(path)), st, attributes)
            finally:
                os.close(parent)
        self._waiting.clear()

    def _dress(self, made: RealObject, st: os.stat_result, attributes: dict[bytes, bytes]) -> None:
        """Owner, attributes, mode and times, in the order in which none of them undoes another."""
        mode = stat.S_IMODE(st.st_mode)
        here = made.stat()
        if (here.st_uid, here.st_gid) != (st.st_uid, st.st_gid) and not _give(made, st.st_uid, st.st_gid):
            self.lost.owners += 1
            if not stat.S_ISDIR(st.st_mode):
                mode &= ~_SET_ID
        for name, value in attributes.items():
            try:
                made.setxattr(name, value)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                self._lose(b"", name)
        if not stat.S_ISLNK(st.st_mode):
            made.chmod(mode)
        made.utime(st.st_atime_ns, st.st_mtime_ns)


def _give(made: RealObject, uid: int, gid: int) -> bool:
    """Change an owner, else the group alone; False where it is not the whole owner."""
    for owner in ((uid, gid), (-1, gid)):
        try:
            made.chown(*owner)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
        else:
            return owner[0] == uid
    return False
