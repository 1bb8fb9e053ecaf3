"""Real directories: the one door to the files of a layer.

A `RealDir` names a directory of one layer by its parent and its name there. Every access to a file is
(descriptor of the real directory, one name), so no path is ever resolved through an untrusted tree, no symbolic
link is ever followed, and a path may be deeper than PATH_MAX. A rename changes two fields of one object, and all
that lies below follows.

A name is only good for the directory that was found there. The owner of a layer can exchange directories behind our
back, so each is remembered from the lstat of the lookup, or from its first descriptor, and recognised when it is opened
again; what has its name now answers ESTALE and is not entered. `exchanged` then tells the lookup to ask for the name
anew. Overlayfs needs none of this, because it holds on to what it looked up (dentries).

Descriptors are opened when needed and kept in a bounded cache (descriptors.py), least recently used first out: an idle
directory holds none. A descriptor got from `RealDir.fd()` is good until the next suspension point of the caller and for
the next three directories that are opened; nobody may keep it longer, and a worker thread may never use one.

The walk stays on the layer's own mount (RESOLVE_NO_XDEV, as the private mount clones of overlayfs do,
fs/overlayfs/super.c ovl_get_layers): where something is mounted inside a lower, its mount point is an empty directory.
Only lstat(2) asks the filesystem that is mounted there, because everything else would cost a system call for each name;
what does not answer, or only to its owner, is shown as a directory like the one that it lies in. A file that is mounted
over a file (/etc/hosts in a container) is that file.

Directories that a layer shows as empty ones (LayerAccess.shows_empty) are not entered either, by whatever name they are
met: EXDEV, as for a mount point.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TypeVar, cast

from fuseunion.core.disk import wh_files
from fuseunion.core.disk.access import LayerAccess
from fuseunion.core.disk.descriptors import KEPT_ON_THE_WAY
from fuseunion.core.disk.wh_files import WhFiles
from fuseunion.linux import syscalls
from fuseunion.linux.objects.permission import as_owner, lent
from fuseunion.linux.objects.real_object import MountPoint, RealObject
from fuseunion.linux.objects.recognition import DiskId, KnownDirectory
from fuseunion.linux.os_error import os_error

log = logging.getLogger("fuseunion.layer")

T = TypeVar("T")

_HOLD = os.O_PATH | os.O_NOFOLLOW
_ON_THE_MOUNT = syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_MAGICLINKS
_OPEN_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_WITHOUT_LINKS = _ON_THE_MOUNT | syscalls.RESOLVE_NO_SYMLINKS

_NAMES_AT_ONCE = 256

_NO_DEVICE = 0
"""st_dev of what no filesystem says anything of."""

# What stat(2) answers when a name is not there, cannot be there, or when its directory is a mount point.
_ABSENT = frozenset({errno.ENOENT, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EXDEV})

# What calls answer that the daemon, as the owner of the upper, or with fewer cached descriptors, may repeat.
_HINDERED = frozenset({errno.EACCES, errno.EMFILE, errno.ENFILE})

# What opening a directory answers when its name leads to nothing, to something else, or to a link.
_NO_DIRECTORY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class HeldObject:
    """An object in a directory, held by a descriptor for the length of a block (RealDir.held).

    A class of its own, because a generator would cost as much as a system call.
    """

    __slots__ = ("_fd", "_name", "_real")

    def __init__(self, real: RealDir, name: bytes) -> None:
        self._real = real
        self._name = name

    def __enter__(self) -> RealObject:
        self._fd = self._real.hold(self._name)
        return RealObject(self._fd)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class RealDir:
    """A directory of one layer. `parent` is None for the layer's root.

    Attributes:
        exchanged: its name led to another object, or to nothing; it is never opened by it again.
    """

    __slots__ = ("_fd", "_known", "_pinned", "_trail", "_wh_files", "exchanged", "layer", "name", "parent")

    def __init__(self, layer: LayerAccess, parent: RealDir | None, name: bytes, trail: tuple[bytes, ...] = ()) -> None:
        self.layer = layer
        self.parent = parent
        self.name = name
        self.exchanged = False
        self._fd = -1
        self._known: KnownDirectory | None = None  # before it was opened, if nobody looked at it
        self._pinned = False
        # The rest of the way from here to the union's own mount point, when that lies below: it must never be entered.
        self._trail = trail
        self._wh_files: WhFiles | None = None  # before the directory was listed

    def child(self, name: bytes, st: os.stat_result | None = None) -> RealDir:
        """The real directory called `name` in this one; it need not exist.

        Args:
            st: its lstat, where somebody has looked at it: nothing else is taken for it from then on.
        """
        trail = self._trail
        child = RealDir(self.layer, self, name, trail[1:] if trail and trail[0] == name else ())
        if st is not None and not self.is_mount_point(name, st):
            child._remember(st)
        return child

    def new_child(self, name: bytes, disk_id: DiskId) -> RealDir:
        """The real directory that was just made here. Precondition: this is one of the upper."""
        child = RealDir(self.layer, self, name)
        child._known = KnownDirectory.made(disk_id)
        return child

    def way(self) -> tuple[RealDir, list[bytes]]:
        """The directory that has none above it, a layer's root or the work directory, and the names that lead here."""
        names: list[bytes] = []
        real: RealDir = self
        while real.parent is not None:
            names.append(real.name)
            real = real.parent
        names.reverse()
        return real, names

    # -- descriptors ---------------------------------------------------------------------------------------------

    def fd(self) -> int:
        """An O_PATH descriptor, borrowed: see the module's text for how long it is good.

        Raises:
            OSError: ESTALE where its name does not lead to it any more; EXDEV where the directory is covered by another
                mount, or shown as an empty one; EACCES; ENOENT, ELOOP, ENOTDIR for one that nobody has looked at.
        """
        fd = self._fd
        if fd >= 0:
            if not self._pinned:
                self.layer.descriptors.touch(self)
            return fd
        return self._walk()

    def _walk(self) -> int:
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

    def _remember(self, st: os.stat_result) -> None:
        self._known = KnownDirectory(st, may_be_renumbered=not self.layer.writable)

    def recognise(self, st: os.stat_result) -> None:
        """Refuse what the name leads to if it is not the directory that was found there.

        Args:
            st: of what the name leads to.

        Raises:
            OSError: ESTALE.
        """
        if self._known is None:
            self._remember(st)
        elif not self._known.is_as(st):
            raise self._stale()

    @property
    def known_id(self) -> DiskId | None:
        """What it is recognised by in the upper; None where nobody has looked at it, or another has its name."""
        return None if self._known is None or self.exchanged else self._known.disk_id

    def _stale(self) -> OSError:
        self.exchanged = True
        return os_error(errno.ESTALE, self.name)

    def _open_in(self, parent_fd: int) -> int:
        if self.exchanged:
            raise self._stale()
        try:
            fd = self._open_name(parent_fd)
        except OSError as error:
            if self._known is None or error.errno not in _NO_DIRECTORY:
                raise
            raise self._stale() from error
        try:
            st = os.fstat(fd)
            self.recognise(st)
            if self.layer.shows_empty(fd, st):
                raise os_error(errno.EXDEV, self.name)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _open_name(self, parent_fd: int) -> int:
        def call() -> int:
            return syscalls.openat2(parent_fd, self.name, _OPEN_DIRECTORY, _WITHOUT_LINKS)

        try:
            return self.layer.descriptors.retried(call)
        except PermissionError as error:
            if error.errno != errno.EACCES or not self.layer.writable:
                raise
        # What is in a closed directory can still be moved with it.
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

    def renew(self) -> None:
        """What has its name from now on is another: we removed it, or somebody changed a lower."""
        self.close()
        self._known = None
        self._wh_files = None
        self.exchanged = False

    def give_up(self) -> None:
        """Its name leads to another object, or to nothing, or does not count any more."""
        self.close()
        self.exchanged = True

    def forget_names(self) -> None:
        """Names may have come and gone here."""
        self._wh_files = None

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

    @property
    def holds_the_mount(self) -> bool:
        """True when the union's own mount point lies in this directory, or below."""
        return bool(self._trail)

    def is_covered(self, name: bytes) -> bool:
        """True for the name that the union itself is mounted over: any access by path would wait for ourselves."""
        return bool(self._trail) and self._trail == (name,)

    def _as_owner(self, call: Callable[[], T]) -> T:
        """Make a call that looks for a name here, though the owner closed this directory of the upper."""
        return as_owner(call, self) if self.layer.writable else call()

    def stat(self, name: bytes) -> os.stat_result | None:
        """lstat(2) of one name, or None when it is not there."""
        if self.is_covered(name):
            return self.layer.covered_stat
        try:
            return os.stat(name, dir_fd=self.fd(), follow_symlinks=False)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            if self._is_mounted_over(name):
                return self._stat_of_mount_point()
            if error.errno != errno.EACCES or not self.layer.writable:
                raise
        with lent(os.dup(self.fd())):
            try:
                return os.stat(name, dir_fd=self.fd(), follow_symlinks=False)
            except FileNotFoundError:
                return None

    def _is_mounted_over(self, name: bytes) -> bool:
        """Whether something is mounted at a name, which is not asked for anything (openat2(2) with O_PATH)."""
        try:
            os.close(syscalls.openat2(self.fd(), name, _HOLD, _ON_THE_MOUNT))
        except OSError as error:
            return error.errno == errno.EXDEV
        return False

    def is_mount_point(self, name: bytes, st: os.stat_result) -> bool:
        """Whether what lstat says of a name is said by another filesystem, which is mounted there.

        Costs nothing for what is on the layer's own filesystem.
        """
        return st.st_dev != self.layer.st_dev and self._is_mounted_over(name)

    def _stat_of_mount_point(self) -> os.stat_result:
        """What to show for a mount point here whose filesystem does not answer: this directory's own, unwritable."""
        st = os.fstat(self.fd())
        mode = stat.S_IFDIR | stat.S_IMODE(st.st_mode) & 0o555
        # Device numbers and nanoseconds are not in the sequence, but in the dictionary that pickling uses.
        _, (fields, extra) = cast(tuple[object, tuple[tuple[int, ...], dict[str, object]]], st.__reduce__())
        return os.stat_result((mode, fields[1], _NO_DEVICE, 2, *fields[4:]), extra)

    def object(self, name: bytes) -> RealObject:
        """One name, good as long as `fd` is. What has to stay the same object is `held`."""
        return RealObject(self.fd(), name)

    def hold(self, name: bytes) -> int:
        """An O_PATH descriptor of one name, owned by the caller; a link is held itself.

        Raises:
            OSError: as openat(2), but not EACCES in the upper; EOPNOTSUPP for the name that the union is mounted over;
                EXDEV for a directory that something else is mounted over.
        """
        if self._trail and self.is_covered(name):
            raise os_error(errno.EOPNOTSUPP, name)
        try:
            return self._hold(name)
        except OSError as error:
            if error.errno not in _HINDERED:
                raise
        return self._as_owner(lambda: self.layer.descriptors.retried(lambda: self._hold(name)))

    def _hold(self, name: bytes) -> int:
        try:
            return syscalls.openat2(self.fd(), name, _HOLD, _ON_THE_MOUNT)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with suppress(NotADirectoryError):  # a file over a file
                os.close(os.open(name, _OPEN_DIRECTORY, dir_fd=self.fd()))
                raise
        return os.open(name, _HOLD, dir_fd=self.fd())

    def held(self, name: bytes) -> HeldObject:
        """`hold` for the length of a block."""
        return HeldObject(self, name)

    def shown(self, name: bytes, st: os.stat_result) -> os.stat_result:
        """What to show for a name whose lstat is `st`: the same, but for a layer with stored ownership.

        Raises:
            OSError: EINVAL for stored ownership that cannot be read; ESTALE when the name leads to another object now.
        """
        ownership = self.layer.ownership
        if ownership is None or self.is_covered(name) or self.is_mount_point(name, st):
            return st
        with self.held(name) as held:
            if not os.path.samestat(held.stat(), st):
                raise os_error(errno.ESTALE, name)
            return ownership.load(held, st)

    def open_regular(self, name: bytes, flags: int) -> tuple[int, os.stat_result]:
        """openat(2) of a name that has to be a regular file's, with its fstat(2), without touching the access time.

        It follows no link and waits for nobody (RealObject.open_regular).

        Raises:
            OSError: as openat(2); ESTALE for what is no regular file; EAGAIN for one that somebody has a lease on;
                EACCES for one that the layer withholds.
        """
        fd, st = self._open(name, flags, RealObject.open_regular)
        if self.layer.withholds(st.st_dev, st.st_ino):
            os.close(fd)
            raise os_error(errno.EACCES, name)
        return fd, st

    def wait_open_regular(self, name: bytes, flags: int) -> int:
        """As `open_regular`, but for a command that keeps nobody waiting (RealObject.wait_open_regular)."""
        return self._open(name, flags, RealObject.wait_open_regular)

    def _open(self, name: bytes, flags: int, how: Callable[[RealObject, int], T]) -> T:
        if self.layer.noatime:
            try:
                return how(RealObject(self.fd(), name), flags | os.O_NOATIME)
            except PermissionError:
                pass
            except OSError as error:
                if error.errno not in _HINDERED:
                    raise
        try:
            return self._read_quietly(lambda flags: how(self.object(name), flags), flags)
        except PermissionError as error:
            if error.errno != errno.EACCES or not self.layer.writable:
                raise
        # In a directory of the upper that its owner closed; or the object itself is closed, which it then says again.
        with self.held(name) as held:
            return self._read_quietly(lambda flags: how(held, flags), flags)

    def itself(self) -> RealObject:
        """The directory itself, good as long as `fd` is. Raises as `fd`."""
        return RealObject(self.fd())

    @contextmanager
    def grasp(self) -> Iterator[RealObject]:
        """As `itself`, but where something is mounted there, it is not reached, and has nothing to say (MountPoint).

        Raises:
            OSError: as `fd`, but not EXDEV; EOPNOTSUPP for the directory that the union is mounted over.
        """
        try:
            itself = self.itself()
        except OSError as error:
            if error.errno != errno.EXDEV or self.parent is None:
                raise
            if self.parent.is_covered(self.name):
                raise os_error(errno.EOPNOTSUPP, self.name) from None
            itself = MountPoint(self.parent.fd(), self.name)
        yield itself

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
        # Through the O_PATH descriptor, which lies on the layer's own mount.
        flags = os.O_RDONLY | os.O_DIRECTORY
        return self._as_owner(lambda: self._read_quietly(lambda flags: RealObject(self.fd()).open(flags), flags))

    def _read_quietly(self, opened: Callable[[int], T], flags: int) -> T:
        """Open something without touching the access time, where that is allowed.

        Args:
            opened: opens it with these flags of open(2).
        """

        def call(flags: int) -> T:
            return self.layer.descriptors.retried(lambda: opened(flags))

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
        self._wh_files = WhFiles(names)
        return names

    def scan(self) -> Iterator[list[bytes]]:
        """As `names`, some names at a time: for what may stop in between, while the directory changes.

        A name that comes or goes meanwhile may be among them or not (readdir(3)); every other one is, once.

        Raises:
            OSError: as `names`.
        """
        try:
            fd = self.open_itself()
        except OSError as error:
            if error.errno == errno.EXDEV:
                return
            raise
        try:
            with os.scandir(fd) as entries:
                while some := [entry.name for entry in islice(entries, _NAMES_AT_ONCE)]:
                    yield os.fsencode("\0".join(some)).split(b"\0")  # at once is a third of the time
        finally:
            os.close(fd)

    def learn_wh_files(self, names: Iterable[bytes]) -> None:
        """The names of the directory that begin with `.wh.` are known; it has not changed since they were read."""
        self._wh_files = WhFiles(names)

    # -- `.wh.` files ------------------------------------------------------------------------------------------------

    def _listed(self) -> WhFiles | None:
        """What the `.wh.` files say; None for a directory that can be searched but not read: ask for each name."""
        if self._wh_files is None:
            try:
                self.names()
            except PermissionError:
                return None
            if self._wh_files is None:
                return WhFiles(())  # something is mounted there
        return self._wh_files

    def hides(self, name: bytes) -> bool:
        """True when a file `.wh.NAME` here hides `name` in the layers below."""
        listed = self._listed()
        if listed is None:
            return self.stat(wh_files.PREFIX + name) is not None
        return name in listed.hidden

    def has_as_descriptor(self, fd: int) -> bool:
        """Whether what `fd` answered is still good: for who needs more than three directories at once."""
        return self._fd == fd

    @property
    def is_known_to_hide_nothing(self) -> bool:
        """True when the directory was listed, and no `.wh.NAME` lies in it."""
        return self._wh_files is not None and not self._wh_files.hidden

    def has_opaque_file(self) -> bool:
        """True when `.wh..wh..opq` lies here. In a lower that the daemon may not search it hides nothing."""
        listed = self._listed()
        if listed is None:
            try:
                return self.stat(wh_files.OPAQUE) is not None
            except PermissionError:
                return False
        return listed.opaque

    def note_wh_file(self, name: bytes, *, present: bool) -> None:
        """Keep what is known of `.wh.` files true after one was written or removed."""
        if self._wh_files is not None:
            self._wh_files.note(name, present=present)

    # -- changes -----------------------------------------------------------------------------------------------------

    def unlink(self, name: bytes) -> None:
        """unlinkat(2) of a non-directory.

        Raises:
            OSError: as unlinkat(2), but not EACCES in a directory that its owner closed; so all changes.
        """
        try:
            os.unlink(name, dir_fd=self.fd())
        except PermissionError:
            as_owner(lambda: os.unlink(name, dir_fd=self.fd()), self)

    def rmdir(self, name: bytes) -> None:
        """unlinkat(2) of an empty directory."""
        as_owner(lambda: os.rmdir(name, dir_fd=self.fd()), self)

    def rename(self, name: bytes, target: RealDir, new_name: bytes, flags: int = 0) -> None:
        """renameat2(2) to another directory, or the same.

        Args:
            flags: of renameat2; EINVAL where the filesystem does not know one.
        """

        def move() -> None:
            if flags:
                syscalls.renameat2(self.fd(), name, target.fd(), new_name, flags)
            else:
                os.rename(name, new_name, src_dir_fd=self.fd(), dst_dir_fd=target.fd())

        both = ((self, name), (target, new_name)) if flags & syscalls.RENAME_EXCHANGE else ((self, name),)
        as_owner(move, self, target, moved=both)

    @contextmanager
    def times_kept(self) -> Iterator[None]:
        """Give the directory its times back after something was copied up into it in the block.

        That comes after the change that everybody sees: what fails then is logged.
        """
        st = self.own_stat()
        try:
            yield
        finally:
            try:
                RealObject(self.fd()).utime(st.st_atime_ns, st.st_mtime_ns)
            except OSError as error:
                log.warning("the times of directory %r show that something was copied up into it: %s", self.name, error)
