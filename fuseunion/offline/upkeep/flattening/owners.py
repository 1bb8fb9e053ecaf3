"""Stored owners become real ones: of an object, its owner, mode, type, capabilities and other attributes.

What is stored counts until its attribute goes, which is the last that happens to an object: so a crash in between shows
it as it was. The root comes last of all, since its attribute says that the upper stores owners.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from functools import partial

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.trees import Entry, walk
from fuseunion.core.disk.work import WorkDirectory
from fuseunion.core.format import xattr_names
from fuseunion.core.marks.marks import is_device
from fuseunion.core.ownership import stored_names
from fuseunion.core.ownership.store import OwnershipStore
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux.objects.permission import as_owner_of
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.linux.os_error import os_error

_PATH_MAX = 4096

_ROOTS = (b"security.", b"trusted.")
_NOBODYS = b"user.fuseoverlayfs."
"""Marks of fuse-overlayfs, which no user sets (core/format/xattr_names.py)."""


class Owners:
    """Makes the stored owners of an upper real.

    Args:
        root: of the upper.
        store: of it.
        work: where what has another type than it should is made anew.
    """

    def __init__(self, root: RealDir, store: OwnershipStore, work: WorkDirectory) -> None:
        self._root = root
        self._store = store
        self._work = work
        self._made: dict[int, tuple[RealDir, bytes]] = {}

    def check(self) -> None:
        """Refuse what this process may not make real, before anything changes.

        Raises:
            UserError: LAYERS; OSError: EINVAL for a malformed owner.
        """
        if os.geteuid() == 0:
            return
        own = (os.geteuid(), os.getegid())
        for path, held, st in self._objects():
            shown = self._store.load(held, st)
            foreign = (shown.st_uid, shown.st_gid) not in ((st.st_uid, st.st_gid), own)
            if foreign or _is_real_device(shown) or _has_roots_attributes(held, st):
                name = os.path.join(self._root.layer.label, os.fsdecode(path)).rstrip("/")
                raise UserError(
                    f"what is stored of the owner of '{name}' can be made real by root alone, or in a user namespace "
                    "that maps it; nothing was changed",
                    ExitCode.LAYERS,
                )

    def make_real(self) -> int:
        """Do it; returns of how many objects.

        Raises:
            OSError: of the layer; the same call goes on then.
        """
        changed = 0
        for entry in walk(self._root):
            if is_device(entry.st):
                continue
            changed += self._of(entry)
        root = self._root.itself()
        self._dress(root, root.stat())
        return changed + 1

    def _objects(self) -> Iterator[tuple[bytes, RealObject, os.stat_result]]:
        yield b"", self._root.itself(), self._root.own_stat()
        for entry in walk(self._root):
            if not is_device(entry.st):
                with entry.directory.held(entry.name) as held:
                    yield entry.path, held, entry.st

    def _of(self, entry: Entry) -> bool:
        real, name, st = entry.directory, entry.name, entry.st
        with real.held(name) as held:
            if not os.path.samestat(held.stat(), st):
                raise os_error(errno.ESTALE, name)
            shown = self._store.load(held, st)
            if stat.S_IFMT(shown.st_mode) == stat.S_IFMT(st.st_mode):
                return self._dress(held, st)
            self._replace(real, name, held, st, shown)
            return True

    def _dress(self, held: RealObject, st: os.stat_result) -> bool:
        """An object of the right type."""
        names = as_owner_of(held, held.listxattr) if not stat.S_ISLNK(st.st_mode) else []
        shown = self._store.load(held, st)
        stored = [name for name in names if name in stored_names.STORED or name.startswith(stored_names.PREFIX)]
        if (shown.st_uid, shown.st_gid) != (st.st_uid, st.st_gid):
            held.chown(shown.st_uid, shown.st_gid)
        if not stat.S_ISLNK(st.st_mode) and stat.S_IMODE(shown.st_mode) != stat.S_IMODE(held.stat().st_mode):
            held.chmod(stat.S_IMODE(shown.st_mode))
        for name in stored:
            if name not in stored_names.STORED:
                self._give_back(held, name)
        for name in stored:
            if name in stored_names.STORED:
                as_owner_of(held, partial(held.removexattr, name))
        self._store.forget(st)
        return bool(stored) or shown.st_mode != st.st_mode or shown.st_uid != st.st_uid

    def _give_back(self, held: RealObject, name: bytes) -> None:
        """An attribute that was kept under another name (core/ownership/stored_names.py), where it is believed."""
        shown = stored_names.to_shown(name)
        if shown == name or shown.startswith(_NOBODYS) or not self._store.believes_xattr(held, name):
            return
        value = as_owner_of(held, partial(held.getxattr, name))
        as_owner_of(held, partial(held.setxattr, xattr_names.to_disk(shown), value))
        as_owner_of(held, partial(held.removexattr, name))

    def _replace(self, real: RealDir, name: bytes, held: RealObject, st: os.stat_result, shown: os.stat_result) -> None:
        """A regular file that stands for something else."""
        temporary, tmp = self._work.new_name(), self._work.tmp
        before = self._made.get(st.st_ino)
        if before is not None:
            before[0].object(before[1]).link(tmp.fd(), temporary)
        else:
            self._make(temporary, held, shown)
        try:
            with real.times_kept():
                self._work.install_over(temporary, real, name, directories=False)
        except BaseException:
            self._work.unlink(temporary)
            raise
        if st.st_nlink > 1:
            self._made[st.st_ino] = (real, name)
        else:
            self._store.forget(st)

    def _make(self, temporary: bytes, held: RealObject, shown: os.stat_result) -> None:
        tmp = self._work.tmp
        if stat.S_ISLNK(shown.st_mode):
            fd = as_owner_of(held, lambda: held.open_regular(os.O_RDONLY)[0])
            try:
                os.symlink(os.read(fd, _PATH_MAX), temporary, dir_fd=tmp.fd())
            finally:
                os.close(fd)
        else:
            os.mknod(temporary, stat.S_IFMT(shown.st_mode) | 0o600, shown.st_rdev, dir_fd=tmp.fd())
        with tmp.held(temporary) as made:
            made.chown(shown.st_uid, shown.st_gid)
            if not stat.S_ISLNK(shown.st_mode):
                made.chmod(stat.S_IMODE(shown.st_mode))
            made.utime(shown.st_atime_ns, shown.st_mtime_ns)


def _has_roots_attributes(held: RealObject, st: os.stat_result) -> bool:
    names = [] if stat.S_ISLNK(st.st_mode) else as_owner_of(held, held.listxattr)
    return any(
        stored_names.to_shown(name).startswith(_ROOTS) and name.startswith(stored_names.PREFIX) for name in names
    )


def _is_real_device(shown: os.stat_result) -> bool:
    return stat.S_ISBLK(shown.st_mode) or (stat.S_ISCHR(shown.st_mode) and not is_device(shown))
