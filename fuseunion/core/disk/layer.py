"""One layer: the descriptor of its root, and what its filesystem can do.

What an upper's filesystem can do is found by really doing it, in the work directory, never from a name or a version:
fuse2fs, NFS, tmpfs of different kernels and user namespaces all differ in what they refuse (`Capabilities.probe`).
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from dataclasses import dataclass

from fuseunion.core.disk.descriptors import Descriptors
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.format import xattr_names
from fuseunion.core.ownership import OwnershipStore
from fuseunion.linux import syscalls

log = logging.getLogger("fuseunion.layer")

TRUSTED_PREFIX = b"trusted.overlay."
USER_PREFIX = b"user.overlay."


class Layer:
    """A directory tree that takes part in a union.

    Args:
        root_fd: an O_RDONLY|O_DIRECTORY descriptor of its root, which the layer owns from now on.
        writable: True for the upper.
        label: how messages name it, usually its path.
        covered: where the union itself is mounted, as names from this root, when that lies strictly inside.
        descriptors: the budget, which all layers of a union share; None for a layer by itself.

    Attributes:
        ownership: where owners and modes are stored, or None where they are what stat(2) says; the layer closes it.
    """

    def __init__(
        self,
        root_fd: int,
        *,
        writable: bool,
        label: str,
        covered: tuple[bytes, ...] = (),
        descriptors: Descriptors | None = None,
    ) -> None:
        self.root_fd = root_fd
        self.writable = writable
        self.label = label
        self.ownership: OwnershipStore | None = None
        self.st_dev = os.fstat(root_fd).st_dev
        self.descriptors = Descriptors() if descriptors is None else descriptors
        self.noatime = _may_open_noatime(root_fd)
        self.covered_stat = _stat_below(root_fd, covered)
        self.root = RealDir(self, None, b"", covered if self.covered_stat is not None else ())
        self.root.pin(root_fd)

    def close(self) -> None:
        """Close every descriptor of the layer, and what is cached for those that share the budget."""
        self.descriptors.close()
        self.root.unpin()
        if self.ownership is not None:
            self.ownership.close()

    def xattr_to_disk(self, name: bytes) -> bytes:
        """The name under which a user's attribute is kept in this layer.

        Raises:
            OSError: EPERM for names that a user may not set.
        """
        return xattr_names.to_disk(name) if self.ownership is None else self.ownership.xattr_to_disk(name)

    def xattr_names(self, name: bytes) -> tuple[bytes, ...]:
        """The names under which a user's attribute may lie in this layer, the one that counts first.

        containers/storage unpacks file capabilities as they are, beside stored owners (force_mask).

        Raises:
            OSError: as `xattr_to_disk`.
        """
        disk = self.xattr_to_disk(name)
        return (disk, name) if name == xattr_names.CAPABILITY and disk != name else (disk,)

    def xattr_to_shown(self, disk: bytes) -> bytes | None:
        """The name a user sees for one on disk in this layer, or None when he must not see it."""
        return xattr_names.to_shown(disk) if self.ownership is None else self.ownership.xattr_to_shown(disk)


def _may_open_noatime(root_fd: int) -> bool:
    """open(2): O_NOATIME is for the owner or CAP_FOWNER; a layer owned by somebody else is read without it."""
    try:
        os.close(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME, dir_fd=root_fd))
    except OSError:
        return False
    return True


def _stat_below(root_fd: int, names: tuple[bytes, ...]) -> os.stat_result | None:
    """lstat of a path given as names, before the union is mounted there; None where there is no such path."""
    if not names:
        return None
    fd = os.dup(root_fd)
    try:
        for name in names[:-1]:
            below = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
        return os.stat(names[-1], dir_fd=fd, follow_symlinks=False)
    except OSError:
        return None
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the upper's filesystem was seen to do.

    Attributes:
        whiteout_devices: a 0/0 character device can be made (else `.wh.` files are written).
        trusted_xattrs: trusted.* can be set.
        user_xattrs: user.* can be set.
        exchange, noreplace, whiteout: the flags of renameat2(2).
    """

    whiteout_devices: bool
    trusted_xattrs: bool
    user_xattrs: bool
    exchange: bool
    noreplace: bool
    whiteout: bool

    @property
    def xattr_prefix(self) -> bytes | None:
        """The prefix that the marks we write use, or None where the filesystem holds no xattrs.

        trusted.overlay. is what the kernel reads by default, user.overlay. with its option `userxattr`.
        """
        if self.trusted_xattrs:
            return TRUSTED_PREFIX
        if self.user_xattrs:
            return USER_PREFIX
        return None

    @classmethod
    def probe(cls, work_fd: int, *, allow_devices: bool = True) -> Capabilities:
        """Try everything in an empty directory on the upper's filesystem; leaves nothing behind.

        Args:
            work_fd: descriptor of the directory; must be searchable and writable.
            allow_devices: False to write `.wh.` files even where devices could be made.

        Raises:
            OSError: when not even a plain file can be made.
        """
        probe = _Probe(work_fd)
        try:
            return cls(
                whiteout_devices=allow_devices and probe.whiteout_device(),
                trusted_xattrs=probe.xattr("trusted.overlay.probe"),
                user_xattrs=probe.xattr("user.overlay.probe"),
                exchange=probe.rename(syscalls.RENAME_EXCHANGE, target=True),
                noreplace=probe.rename(syscalls.RENAME_NOREPLACE, target=False),
                whiteout=allow_devices and probe.rename(syscalls.RENAME_WHITEOUT, target=False),
            )
        finally:
            probe.clean()


class _Probe:
    def __init__(self, work_fd: int) -> None:
        self._fd = work_fd
        self.clean()
        self._make(b"probe-a")

    def _make(self, name: bytes) -> None:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600, dir_fd=self._fd))

    def clean(self) -> None:
        for name in (b"probe-a", b"probe-b"):
            try:
                os.unlink(name, dir_fd=self._fd)
            except FileNotFoundError:
                pass  # not every probe makes both

    def whiteout_device(self) -> bool:
        try:
            os.mknod(b"probe-b", stat.S_IFCHR, 0, dir_fd=self._fd)
            st = os.stat(b"probe-b", dir_fd=self._fd, follow_symlinks=False)
            os.unlink(b"probe-b", dir_fd=self._fd)
        except OSError as error:
            log.debug("no 0/0 devices: %s", error)
            return False
        return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0

    def xattr(self, name: str) -> bool:
        fd = os.open(b"probe-a", os.O_RDONLY, dir_fd=self._fd)
        try:
            os.setxattr(fd, name, b"y")
            return os.getxattr(fd, name) == b"y"
        except OSError as error:
            log.debug("no %s: %s", name, error)
            return False
        finally:
            os.close(fd)

    def rename(self, flag: int, *, target: bool) -> bool:
        self.clean()
        self._make(b"probe-a")
        if target:
            self._make(b"probe-b")
        try:
            syscalls.renameat2(self._fd, b"probe-a", self._fd, b"probe-b", flag)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            log.debug("no renameat2 flag %d: %s", flag, error)
            return False
        finally:
            self.clean()
            self._make(b"probe-a")
        return True
