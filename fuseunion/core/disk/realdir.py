"""Real directories: the one door to the files of a layer.

A `RealDir` names a directory of one layer by its parent and its name there. Every access to a file is
(descriptor of the real directory, one name), so no path is ever resolved through an untrusted tree, no symbolic
link is ever followed, and a path may be deeper than PATH_MAX. A rename changes two fields of one object, and all
that lies below follows.

Descriptors are opened when needed and kept in a bounded cache (descriptors.py), least recently used first out: an idle
directory holds none. A descriptor got from `RealDir.fd()` is good until the next suspension point of the caller and for
the next three directories that are opened; nobody may keep it longer, and a worker thread may never use one.

The walk stays on the layer's own mount (RESOLVE_NO_XDEV, as the private mount clones of overlayfs do,
fs/overlayfs/super.c ovl_get_layers): where something is mounted inside a lower, its mount point is an empty directory.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from fuseunion.core.disk.descriptors import KEPT_ON_THE_WAY
from fuseunion.linux import syscalls
from fuseunion.linux.os_error import os_error

if TYPE_CHECKING:
    from fuseunion.core.disk.layer import Layer

T = TypeVar("T")

_HOLD = os.O_PATH | os.O_NOFOLLOW
_OPEN_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_RESOLVE = syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_SYMLINKS

# What stat(2) answers when a name is not there, cannot be there, or when its directory is a mount point.
_ABSENT = frozenset({errno.ENOENT, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EXDEV})

AUFS_PREFIX = b".wh."
AUFS_OPAQUE = b".wh..wh..opq"


def proc_fd(fd: int) -> bytes:
    """A path to what a descriptor holds, O_PATH or not, for the calls that take none (proc(5)).

    It leads there by a magic link, which has to be followed, and no link behind it is.
    """
    return b"/proc/self/fd/%d" % fd


_RIGHTS = {stat.S_IFDIR: 0o700, stat.S_IFREG: 0o600}


@contextmanager
def lent(fd: int, kinds: Container[int] = frozenset(_RIGHTS)) -> Iterator[None]:
    """Give the owner all rights on a directory or regular file for a while; closes the O_PATH descriptor it is given.

    By descriptor, because the name may lead elsewhere afterwards.

    Args:
        kinds: S_IFMT bits of what is to be opened; anything else stays as it is.
    """
    try:
        st = os.fstat(fd)
        kind = stat.S_IFMT(st.st_mode)
        rights = _RIGHTS.get(kind, 0) if kind in kinds else 0
        if st.st_mode & rights == rights:
            yield
            return
        path = proc_fd(fd)
        os.chmod(path, stat.S_IMODE(st.st_mode) | rights)
        try:
            yield
        finally:
            os.chmod(path, stat.S_IMODE(st.st_mode))
    finally:
        os.close(fd)


def as_owner_of(fd: int, operation: Callable[[], T]) -> T:
    """Run an operation on what a descriptor holds, though its mode forbids it to its owner, the daemon's user.

    An attribute of a user needs read or write permission on the object (fs/xattr.c xattr_permission).
    """
    try:
        return operation()
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
    with lent(os.dup(fd)):
        return operation()


class RealDir:
    """A directory of one layer. `parent` is None for the layer's root."""

    __slots__ = ("_fd", "_hidden", "_opaque_file", "_pinned", "_trail", "layer", "name", "parent")

    def __init__(self, layer: Layer, parent: RealDir | None, name: bytes, trail: tuple[bytes, ...] = ()) -> None:
        self.layer = layer
        self.parent = parent
        self.name = name
        self._fd = -1
        self._pinned = False
        # The rest of the way from here to the union's own mount point, when that lies below: it must never be entered.
        self._trail = trail
        # Names hidden by `.wh.NAME` files here: None before the directory was listed.
        self._hidden: set[bytes] | None = None
        self._opaque_file = False

    def child(self, name: bytes) -> RealDir:
        """The real directory called `name` in this one; it need not exist."""
        trail = self._trail
        return RealDir(self.layer, self, name, trail[1:] if trail and trail[0] == name else ())

    # -- descriptors ---------------------------------------------------------------------------------------------

    def fd(self) -> int:
        """An O_PATH descriptor, borrowed: see the module's text for how long it is good.

        Raises:
            OSError: EXDEV where the directory is covered by another mount, ENOENT, ELOOP, ENOTDIR, EACCES.
        """
        fd = self._fd
        if fd >= 0:
            if not self._pinned:
                self.layer.descriptors.touch(self)
            return fd
        return self._open()

    def _open(self) -> int:
        missing: list[RealDir] = []
        node: RealDir = self
        while node._fd < 0:
            missing.append(node)
            assert node.parent is not None, "a root's descriptor is pinned"
            node = node.parent
        above = node.fd()
        passing = -1  # the descriptor of a directory on the way that is not worth keeping
        try:
            while missing:
                node = missing.pop()
                fd = node._open_in(above)
                if passing >= 0:
                    os.close(passing)
                    passing = -1
                if len(missing) < KEPT_ON_THE_WAY:
                    node._fd = fd
                    self.layer.descriptors.add(node, fd)
                else:
                    passing = fd
                above = fd
        finally:
            if passing >= 0:
                os.close(passing)
        return above

    def _open_in(self, parent_fd: int) -> int:
        def call() -> int:
            return syscalls.openat2(parent_fd, self.name, _OPEN_DIRECTORY, _RESOLVE)

        try:
            return self.layer.descriptors.retried(call)
        except PermissionError as error:
            if error.errno != errno.EACCES or not self.layer.writable:
                raise
        # A directory of the upper that its owner closed: what is in it can still be moved with it.
        with lent(os.dup(parent_fd)):
            return call()

    def pin(self, fd: int) -> None:
        """Use `fd`, which now belongs to this object, from here on: for roots and for removed directories."""
        self.unpin()
        cached = self.layer.descriptors.hand_over(self)
        if cached is not None:
            os.close(cached)
        self.layer.descriptors.take()
        self._fd = fd
        self._pinned = True

    def unpin(self) -> None:
        """Close a pinned descriptor."""
        if self._pinned:
            os.close(self._fd)
            self.layer.descriptors.give_back()
            self._fd = -1
            self._pinned = False

    def close(self) -> None:
        """Nobody knows the directory any more: close its descriptor, if it is not a layer's root."""
        if self.parent is None:
            return
        self.unpin()
        cached = self.layer.descriptors.hand_over(self)
        if cached is not None:
            os.close(cached)
            self._fd = -1

    def forget_descriptor(self) -> None:
        """The cache closed the descriptor."""
        self._fd = -1

    # -- files -----------------------------------------------------------------------------------------------------

    def is_covered(self, name: bytes) -> bool:
        """True for the name that the union itself is mounted over: any access by path would wait for ourselves."""
        return bool(self._trail) and self._trail == (name,)

    def stat(self, name: bytes) -> os.stat_result | None:
        """lstat(2) of one name, or None when it is not there."""
        if self.is_covered(name):
            return self.layer.covered_stat
        try:
            return os.stat(name, dir_fd=self.fd(), follow_symlinks=False)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            if error.errno != errno.EACCES or not self.layer.writable:
                raise
        # A directory of the upper that its owner, the daemon's user, closed: what is in it is still his.
        with lent(os.dup(self.fd())):
            try:
                return os.stat(name, dir_fd=self.fd(), follow_symlinks=False)
            except FileNotFoundError:
                return None

    def hold(self, name: bytes) -> int:
        """An O_PATH descriptor of one name, owned by the caller; a link is held itself.

        Raises:
            OSError: as openat(2), but not EACCES in the upper; EOPNOTSUPP for the name that the union is mounted over.
        """
        if self.is_covered(name):
            raise os_error(errno.EOPNOTSUPP, name)

        def call() -> int:
            return os.open(name, _HOLD, dir_fd=self.fd())

        try:
            return self.layer.descriptors.retried(call)
        except PermissionError as error:
            if error.errno != errno.EACCES or not self.layer.writable:
                raise
        with lent(os.dup(self.fd())):
            return call()

    @contextmanager
    def held(self, name: bytes) -> Iterator[int]:
        """`hold` for the length of a block."""
        fd = self.hold(name)
        try:
            yield fd
        finally:
            os.close(fd)

    def shown(self, name: bytes, st: os.stat_result) -> os.stat_result:
        """What to show for a name whose lstat is `st`: the same, but for a layer with stored ownership.

        Raises:
            OSError: EINVAL for stored ownership that cannot be read.
        """
        ownership = self.layer.ownership
        if ownership is None or self.is_covered(name):
            return st
        with self.held(name) as fd:
            return ownership.load(fd, st)

    def open(self, name: bytes, flags: int) -> int:
        """openat(2) of one name, close-on-exec, never following a link, without touching the access time.

        Raises:
            OSError: as openat(2); ELOOP for a symbolic link.
        """
        try:
            return self._open_to_read(name, flags | os.O_NOFOLLOW, self.fd)
        except PermissionError as error:
            if error.errno != errno.EACCES or not self.layer.writable:
                raise
        # In a directory of the upper that its owner closed; or the object itself is closed, which it then says again.
        with self.held(name) as held:
            return self._open_to_read(proc_fd(held), flags & ~os.O_NOFOLLOW, lambda: None)

    def proc_path(self, name: bytes) -> bytes:
        """A path to one name for the calls that take no directory descriptor (the xattr family before Linux 6.13)."""
        return b"/proc/self/fd/%d/%s" % (self.fd(), name)

    @contextmanager
    def grasp(self) -> Iterator[int]:
        """A descriptor of the directory itself, good for calls on `proc_fd` of it until the block ends.

        Raises:
            OSError: as `fd`, but not EXDEV: where something is mounted there, it is what is mounted.
        """
        try:
            fd = self.fd()
        except OSError as error:
            if error.errno != errno.EXDEV or self.parent is None:
                raise
        else:
            yield fd
            return
        with self.parent.held(self.name) as fd:
            yield fd

    def own_stat(self) -> os.stat_result:
        """fstat(2) of the directory itself; lstat(2) of its name where something is mounted there."""
        try:
            return os.fstat(self.fd())
        except OSError as error:
            st = self.parent.stat(self.name) if error.errno == errno.EXDEV and self.parent is not None else None
            if st is None:
                raise
            return st

    def open_itself(self) -> int:
        """A descriptor of the directory that can be listed and synced, owned by the caller.

        Raises:
            OSError: EACCES where a directory of a lower may not be read; EXDEV where something is mounted there.
        """
        try:
            return self._open_again()
        except PermissionError:
            if not self.layer.writable:
                raise
        with lent(os.dup(self.fd())):  # closed by its owner, who is the daemon's user
            return self._open_again()

    def _open_again(self) -> int:
        # Through the O_PATH descriptor, which lies on the layer's own mount.
        return self._open_to_read(proc_fd(self.fd()), os.O_RDONLY | os.O_DIRECTORY, lambda: None)

    def _open_to_read(self, path: bytes, flags: int, dirfd: Callable[[], int | None]) -> int:
        def call(flags: int) -> int:
            return self.layer.descriptors.retried(lambda: os.open(path, flags, dir_fd=dirfd()))

        if self.layer.noatime:
            try:
                return call(flags | os.O_NOATIME)
            except PermissionError as error:
                if error.errno != errno.EPERM:
                    raise
                # open(2): only the owner and CAP_FOWNER may use O_NOATIME.
        return call(flags)

    def names(self) -> list[bytes]:
        """Every name in the directory as it is on disk; also learns the `.wh.` files.

        Raises:
            OSError: EACCES where the directory may not be read.
        """
        try:
            fd = self.open_itself()
        except OSError as error:
            if error.errno == errno.EXDEV:
                return []
            raise
        try:
            names = [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)
        self._learn(names)
        return names

    # -- `.wh.` files ------------------------------------------------------------------------------------------------

    def _learn(self, names: list[bytes]) -> None:
        hidden: set[bytes] = set()
        opaque = False
        for name in names:
            if name.startswith(AUFS_PREFIX):
                if name == AUFS_OPAQUE:
                    opaque = True
                elif not name.startswith(b".wh..wh."):
                    hidden.add(name[len(AUFS_PREFIX) :])
        self._hidden = hidden
        self._opaque_file = opaque

    def _listed(self) -> set[bytes] | None:
        if self._hidden is None:
            try:
                self.names()
            except PermissionError:
                return None  # a directory that can be searched but not read: ask for each name
        return self._hidden

    def hides(self, name: bytes) -> bool:
        """True when a file `.wh.NAME` here hides `name` in the layers below (OCI image layer specification)."""
        hidden = self._listed()
        if hidden is None:
            return self.stat(AUFS_PREFIX + name) is not None
        return name in hidden

    def has_opaque_file(self) -> bool:
        """True when `.wh..wh..opq` lies here. In a lower that the daemon may not search it hides nothing."""
        if self._listed() is None:
            try:
                return self.stat(AUFS_OPAQUE) is not None
            except PermissionError:
                return False
        return self._opaque_file

    def note_mark(self, name: bytes, present: bool) -> None:
        """Keep what is known of `.wh.` files true after one was written or removed."""
        if self._hidden is None:
            return
        if name == AUFS_OPAQUE:
            self._opaque_file = present
        elif present:
            self._hidden.add(name[len(AUFS_PREFIX) :])
        else:
            self._hidden.discard(name[len(AUFS_PREFIX) :])
