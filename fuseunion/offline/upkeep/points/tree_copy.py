"""A copy of an upper as it lies there, marks and all, and of what its work directory keeps for it.

Data is shared where the filesystem can (FICLONE), else taken from an earlier copy by a hard link where the file has not
changed since, else copied. Copies are never written again, so that links between them harm nobody; the upper itself
never shares an inode with one, because a mount writes to its files in place.

A file has not changed when its inode number, its size and its time of change (ctime, which nobody can set) are the same
and that time was long enough before the earlier copy for two changes not to have the same one.

What says of an object which one it is, its inode number in the mark of its origin and what a database keeps of its
owner, is written anew for the copy.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from functools import partial
from typing import NamedTuple

from fuseunion.core.copying.copy_data import Unshared, copy
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.format import xattr_names
from fuseunion.core.marks.marks import is_device
from fuseunion.core.ownership.store import OwnershipStore
from fuseunion.linux.objects.permission import as_owner_of
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.linux.os_error import os_error

_RACY_NS = 1_000_000_000
"""A ctime that is younger than this when it is read may be that of a later change as well."""

_ORIGIN = struct.Struct("<BQ")

_VANISHED = frozenset({errno.ENOENT, errno.ESTALE, errno.ENODATA})


class Known(NamedTuple):
    """What is remembered of a regular file that was copied: whether it has changed since."""

    ino: int
    ctime_ns: int
    size: int


Manifest = dict[bytes, Known]
"""By path."""


class Earlier(NamedTuple):
    """An earlier copy.

    Attributes:
        root: of it.
        manifest: what was copied, and when it had changed last.
    """

    root: RealDir
    manifest: Manifest


class TreeCopy:
    """Copies trees of one filesystem.

    Args:
        earlier: a copy to take unchanged files from; None where there is none.
        tolerant: what goes or changes meanwhile is left out, or copied in part: for a copy that is only to be the
            earlier one of another.
        stores: of the owners of what is copied, and of the copy.

    Attributes:
        manifest: what was copied.
        linked, copied: bytes that were taken from the earlier copy, and others.
    """

    def __init__(
        self,
        earlier: Earlier | None = None,
        *,
        tolerant: bool = False,
        stores: tuple[OwnershipStore, OwnershipStore] | None = None,
    ) -> None:
        self._earlier = earlier
        self._tolerant = tolerant
        self._stores = stores
        self._unshared = Unshared()
        self._names: dict[int, tuple[RealDir, bytes]] = {}
        self._whiteout: tuple[RealDir, bytes] | None = None
        self.manifest: Manifest = {}
        self.linked = self.copied = 0

    def copy(self, source: RealDir, target: RealDir) -> None:
        """Copy what is in a directory, and what the directory itself has, into an empty one.

        Raises:
            OSError: of the layer, with the path as its filename; ENOSPC, EDQUOT; EPERM for what this user may not make.
        """
        earlier = self._earlier.root if self._earlier is not None else None
        waiting = [(source, target, earlier, b"", False)]
        while waiting:
            directory, made, old, path, is_done = waiting.pop()
            if is_done:
                with directory.grasp() as held:
                    self._dress(held, made.itself(), directory.own_stat())
                for each in (made, directory, old):
                    if each is not None:
                        each.close()
                continue
            waiting.append((directory, made, old, path, True))
            try:
                names = sorted(directory.names())
            except OSError as error:
                if self._tolerant and error.errno in _VANISHED:
                    continue
                raise
            for name in names:
                below = path + b"/" + name if path else name
                try:
                    if self._one(directory, made, old, name, below):
                        before = old.child(name) if old is not None else None
                        waiting.append((directory.child(name), made.child(name), before, below, False))
                except OSError as error:
                    if self._tolerant and error.errno in _VANISHED:
                        continue
                    raise type(error)(error.errno, error.strerror, below) from None

    def forget_earlier(self) -> Manifest:
        """What is copied from now on is not among the files of the upper; returns what is known of those."""
        manifest, self.manifest = self.manifest, {}
        self._earlier = None
        return manifest

    def _one(self, directory: RealDir, made: RealDir, old: RealDir | None, name: bytes, path: bytes) -> bool:
        """Copy one name; True for a directory, in which nothing is yet."""
        st = directory.stat(name)
        if st is None or directory.is_mount_point(name, st):
            return False
        if stat.S_ISDIR(st.st_mode):
            os.mkdir(name, 0o700, dir_fd=made.fd())
            return True
        if is_device(st):
            self._link_whiteout(made, name, st)
            return False
        first = self._names.get(st.st_ino) if st.st_nlink > 1 else None
        if first is not None:
            first[0].object(first[1]).link(made.fd(), name)
            return False
        if self._taken_from_earlier(st, old, made, name, path):
            if st.st_nlink > 1:
                self._names[st.st_ino] = (made, name)
            return False
        with directory.held(name) as held:
            if not os.path.samestat(held.stat(), st):
                raise os_error(errno.ESTALE, name)
            if stat.S_ISREG(st.st_mode):
                self._file(held, made, name, path)
            else:
                self._special(held, made, name, st)
        if st.st_nlink > 1:
            self._names[st.st_ino] = (made, name)
        return False

    def _link_whiteout(self, made: RealDir, name: bytes, st: os.stat_result) -> None:
        if self._whiteout is not None:
            try:
                self._whiteout[0].object(self._whiteout[1]).link(made.fd(), name)
                return
            except OSError as error:
                if error.errno not in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
                    raise
        os.mknod(name, stat.S_IFCHR | stat.S_IMODE(st.st_mode), 0, dir_fd=made.fd())
        self._whiteout = (made, name)

    def _file(self, held: RealObject, made: RealDir, name: bytes, path: bytes) -> None:
        now = time.time_ns()
        source = as_owner_of(held, lambda: held.open_regular(os.O_RDONLY)[0])
        try:
            st = os.fstat(source)
            if st.st_ctime_ns < now - _RACY_NS:
                self.manifest[path] = Known(st.st_ino, st.st_ctime_ns, st.st_size)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            target = os.open(name, flags, 0o600, dir_fd=made.fd())
            try:
                try:
                    copy(source, target, st.st_size, st, self._unshared)
                except OSError as error:
                    if not self._tolerant or error.errno != errno.EIO:
                        raise
                    self.manifest.pop(path, None)
                self.copied += st.st_size
                self._dress(held, RealObject(target), st)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _taken_from_earlier(
        self, st: os.stat_result, old: RealDir | None, made: RealDir, name: bytes, path: bytes
    ) -> bool:
        """Link a file that has not changed from the earlier copy; False where it has to be copied."""
        if self._earlier is None or old is None or self._stores is not None or not stat.S_ISREG(st.st_mode):
            return False
        known = Known(st.st_ino, st.st_ctime_ns, st.st_size)
        if self._earlier.manifest.get(path) != known:
            return False
        try:
            before = old.stat(name)
            if before is None or not stat.S_ISREG(before.st_mode) or before.st_size != known.size:
                return False
            old.object(name).link(made.fd(), name)
        except OSError:
            return False  # EMLINK, or somebody took the earlier copy away: then it is copied
        self.manifest[path] = known
        self.linked += st.st_size
        return True

    def _special(self, held: RealObject, made: RealDir, name: bytes, st: os.stat_result) -> None:
        if stat.S_ISLNK(st.st_mode):
            os.symlink(held.readlink(), name, dir_fd=made.fd())
        else:
            os.mknod(name, stat.S_IFMT(st.st_mode) | 0o600, st.st_rdev, dir_fd=made.fd())
        with made.held(name) as target:
            self._dress(held, target, st)

    # -- what an object has ------------------------------------------------------------------------------------------

    def _dress(self, source: RealObject, target: RealObject, st: os.stat_result) -> None:
        new = target.stat()
        if (new.st_uid, new.st_gid) != (st.st_uid, st.st_gid):
            target.chown(st.st_uid, st.st_gid)
        is_link = stat.S_ISLNK(st.st_mode)
        for name in as_owner_of(source, partial(_names, source)):
            value = as_owner_of(source, partial(source.getxattr, name))
            as_owner_of(target, partial(target.setxattr, name, _own(name, value, st, new)))
        if not is_link:
            target.chmod(stat.S_IMODE(st.st_mode))
        if self._stores is not None:
            before, after = self._stores
            facts = before.find(source, st)
            if facts is not None:
                after.store(target, target.stat(), facts)
        target.utime(st.st_atime_ns, st.st_mtime_ns)


def _names(held: RealObject) -> list[bytes]:
    try:
        return sorted(held.listxattr())
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return []


def _own(name: bytes, value: bytes, st: os.stat_result, new: os.stat_result) -> bytes:
    """An attribute as the copy is to have it: the mark of its origin names the object that it is on."""
    if not name.endswith(xattr_names.UNION_ORIGIN) or len(value) < _ORIGIN.size:
        return value
    version, number = _ORIGIN.unpack_from(value)
    if number != st.st_ino or not xattr_names.is_private(name):
        return value
    return _ORIGIN.pack(version, new.st_ino) + value[_ORIGIN.size :]
