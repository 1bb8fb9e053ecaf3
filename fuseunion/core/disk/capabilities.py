"""What the filesystem of an upper can do, found by really doing it, never from a name or a version.

fuse2fs, NFS, tmpfs of different kernels and user namespaces all differ in what they refuse.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from typing import NamedTuple

from fuseunion.core.format.xattr_names import PREFIXES
from fuseunion.linux import owned, syscalls

log = logging.getLogger("fuseunion.layer")

_TRUSTED_PREFIX, _USER_PREFIX = PREFIXES


class Capabilities(NamedTuple):
    """What the upper's filesystem was seen to do.

    Attributes:
        whiteout_devices: a 0/0 character device can be made (else `.wh.` files are written).
        trusted_xattrs: trusted.* can be set.
        user_xattrs: user.* can be set.
        exchange, noreplace, whiteout: the flags of renameat2(2).
        in_memory: there is no disk that anything would wait for.
        keeps_removed: a file that was removed can be opened by an O_PATH descriptor of it.
    """

    whiteout_devices: bool
    trusted_xattrs: bool
    user_xattrs: bool
    exchange: bool
    noreplace: bool
    whiteout: bool
    in_memory: bool = False
    keeps_removed: bool = True

    @property
    def xattr_prefix(self) -> bytes | None:
        """The prefix that the marks we write use, or None where the filesystem holds no xattrs.

        trusted.overlay. is what the kernel reads by default, user.overlay. with its option `userxattr`.
        """
        if self.trusted_xattrs:
            return _TRUSTED_PREFIX
        if self.user_xattrs:
            return _USER_PREFIX
        return None

    @classmethod
    def probe(cls, work_fd: int, *, allow_devices: bool = True) -> Capabilities:
        """Try everything in an empty directory on the upper's filesystem; leaves nothing behind.

        Args:
            work_fd: descriptor of the directory; must be searchable and writable.
            allow_devices: False to write `.wh.` files even where devices could be made.

        Raises:
            OSError: when not even a plain file can be made; ENOSPC, EDQUOT, which say nothing about the filesystem.
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
                in_memory=syscalls.is_in_memory(work_fd),
                keeps_removed=probe.keeps_removed(),
            )
        finally:
            probe.clean()


class _Probe:
    def __init__(self, work_fd: int) -> None:
        self._fd = work_fd
        self.clean()
        self._make(b"probe-a")

    def _make(self, name: bytes) -> None:
        os.close(owned.new_file(name, self._fd))

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
            _refuse_lack_of_space(error)
            log.debug("no 0/0 devices: %s", error)
            return False
        return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0

    def xattr(self, name: str) -> bool:
        fd = owned.new_file(b"probe-a", self._fd)
        try:
            os.setxattr(fd, name, b"y")
            return os.getxattr(fd, name) == b"y"
        except OSError as error:
            _refuse_lack_of_space(error)
            log.debug("no %s: %s", name, error)
            return False
        finally:
            os.close(fd)

    def keeps_removed(self) -> bool:
        fd = os.open(b"probe-a", os.O_PATH | os.O_NOFOLLOW, dir_fd=self._fd)
        try:
            os.unlink(b"probe-a", dir_fd=self._fd)
            os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
        except OSError as error:
            log.debug("what was removed is gone: %s", error)
            return False
        finally:
            os.close(fd)
        return True

    def rename(self, flag: int, *, target: bool) -> bool:
        self.clean()
        self._make(b"probe-a")
        if target:
            self._make(b"probe-b")
        try:
            syscalls.renameat2(self._fd, b"probe-a", self._fd, b"probe-b", flag)
        except OSError as error:
            _refuse_lack_of_space(error)
            log.debug("no renameat2 flag %d: %s", flag, error)
            return False
        finally:
            self.clean()
            self._make(b"probe-a")
        return True


def _refuse_lack_of_space(error: OSError) -> None:
    """Raise what is no answer: the filesystem might, if it were not full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise error
