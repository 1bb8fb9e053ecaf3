"""One object of a filesystem, named so that no symbolic link is ever followed and no path is ever resolved.

    RealObject(fd)          what a descriptor holds, O_PATH or not
    RealObject(fd, name)    one name in the directory that the descriptor holds; a link is the link itself
    OpenObject(fd)          what a descriptor holds that is not O_PATH

Many calls take no descriptor of kind O_PATH, and before Linux 6.13 the calls for extended attributes take no directory
descriptor. They are given a path through /proc/self/fd (proc(5)): to the descriptor itself, which is a magic link that
has to be followed, or to the name behind it, which is not followed.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from fuseunion.linux import syscalls
from fuseunion.linux.os_error import os_error

# open(2) of a link, a directory, a FIFO that nobody reads, a socket, a device without a driver.
_NOT_REGULAR = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV})

_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})


class RealObject(NamedTuple):
    """An object, for the length of a call or of the block that it was given for.

    Every method raises the OSError of its system call.

    Attributes:
        fd: of the object, or of the directory that holds it.
        name: in that directory; empty for what `fd` holds.
    """

    fd: int
    name: bytes = b""

    def _reach(self) -> tuple[bytes | int, bool]:
        """A path, and whether it has to be followed; or a descriptor that the calls take themselves."""
        if self.name:
            return b"/proc/self/fd/%d/%s" % (self.fd, self.name), False
        return b"/proc/self/fd/%d" % self.fd, True

    def stat(self) -> os.stat_result:
        """lstat(2)."""
        if self.name:
            return os.stat(self.name, dir_fd=self.fd, follow_symlinks=False)
        return os.fstat(self.fd)

    def open(self, flags: int) -> int:
        """openat(2): a new descriptor, close-on-exec, owned by the caller; ELOOP for a symbolic link."""
        if self.name:
            return os.open(self.name, flags | os.O_NOFOLLOW, dir_fd=self.fd)
        # What is held cannot be exchanged, and a link that is held answers ELOOP as well.
        return os.open(b"/proc/self/fd/%d" % self.fd, flags & ~os.O_NOFOLLOW)

    def open_regular(self, flags: int) -> tuple[int, os.stat_result]:
        """As `open`, of what has to be a regular file, and its fstat(2). Waits for nobody.

        O_NONBLOCK keeps a FIFO that was put in its place from waiting for its other end, and a file that somebody has a
        lease on (fcntl(2), F_SETLEASE) from waiting for up to /proc/sys/fs/lease-break-time.

        Raises:
            OSError: of the system call; ESTALE for what is no regular file; EAGAIN while somebody has a lease on it,
                who has been told to give it back.
        """
        try:
            fd = self.open(flags | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in _NOT_REGULAR:
                raise os_error(errno.ESTALE, self.name) from error
            raise
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode):
                raise os_error(errno.ESTALE, self.name)
            # Reads and writes of regular files ignore it, but a FUSE filesystem is told of it (fs/fuse/file.c).
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        except BaseException:
            os.close(fd)
            raise
        return fd, st

    def wait_open_regular(self, flags: int) -> int:
        """As `open_regular`, but waits until a lease is given back, as open(2) does; it opens what it looked at.

        Raises:
            OSError: of the system calls; ESTALE for what is no regular file.
        """
        with self._held() as fd:
            held = RealObject(fd)
            if not stat.S_ISREG(held.stat().st_mode):
                raise os_error(errno.ESTALE, self.name)
            return held.open(flags)

    @contextmanager
    def _held(self) -> Iterator[int]:
        if not self.name:
            yield self.fd
            return
        fd = os.open(self.name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def chown(self, uid: int, gid: int) -> None:
        """chown(2) of the object itself; -1 keeps an id."""
        path, follow = self._reach()
        os.chown(path, uid, gid, follow_symlinks=follow)

    def chmod(self, mode: int) -> None:
        """chmod(2); EOPNOTSUPP for a symbolic link. By a descriptor, since there is no lchmod(2)."""
        if not self.name:
            os.chmod(b"/proc/self/fd/%d" % self.fd, mode)
            return
        with self._held() as fd:
            os.chmod(b"/proc/self/fd/%d" % fd, mode)

    def utime(self, atime_ns: int, mtime_ns: int) -> None:
        """utimensat(2), in nanoseconds."""
        path, follow = self._reach()
        os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=follow)

    def getxattr(self, name: bytes | str) -> bytes:
        """getxattr(2)."""
        path, follow = self._reach()
        return os.getxattr(path, name, follow_symlinks=follow)

    def setxattr(self, name: bytes | str, value: bytes) -> None:
        """setxattr(2)."""
        path, follow = self._reach()
        os.setxattr(path, name, value, follow_symlinks=follow)

    def removexattr(self, name: bytes | str) -> None:
        """removexattr(2)."""
        path, follow = self._reach()
        os.removexattr(path, name, follow_symlinks=follow)

    def listxattr(self) -> list[bytes]:
        """listxattr(2): the names as they are on disk; none where the filesystem has no attributes."""
        path, follow = self._reach()
        try:
            names = os.listxattr(path, follow_symlinks=follow)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return []
            raise
        return [os.fsencode(name) for name in names]

    def allows(self, rights: int) -> bool:
        """faccessat2(2), with the effective ids: whether this process may do that, os.R_OK and so on."""
        path, follow = self._reach()
        return os.access(path, rights, effective_ids=True, follow_symlinks=follow)

    def readlink(self) -> bytes:
        """readlinkat(2): EINVAL or ENOENT for what is no link."""
        return os.readlink(self.name, dir_fd=self.fd)

    def link(self, directory_fd: int, name: bytes) -> None:
        """linkat(2): give the object one more name."""
        if self.name:
            os.link(self.name, name, src_dir_fd=self.fd, dst_dir_fd=directory_fd, follow_symlinks=False)
        else:
            os.link(b"/proc/self/fd/%d" % self.fd, name, dst_dir_fd=directory_fd, follow_symlinks=True)

    def ioctl(self, command: int, value: bytes) -> bytes:
        """ioctl(2) of a regular file or directory, which is opened for that; the value as it is afterwards.

        Raises:
            OSError: of the system calls; ENOTTY for other types, and where the filesystem does not know the command.
        """
        with self._held() as fd:
            held = RealObject(fd)
            if stat.S_IFMT(held.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
                raise os_error(errno.ENOTTY)
            opened = held.open(os.O_RDONLY | os.O_NONBLOCK)
            try:
                return fcntl.ioctl(opened, command, value)
            finally:
                os.close(opened)

    def handle(self) -> tuple[int, bytes]:
        """name_to_handle_at(2): the type and the bytes of the file handle."""
        return syscalls.name_to_handle_at(self.fd, self.name, 0 if self.name else syscalls.AT_EMPTY_PATH)

    def birth_time_ns(self) -> int | None:
        """statx(2): when it was made, in nanoseconds; None where the filesystem does not know."""
        return syscalls.birth_time_ns(self.fd, self.name, 0 if self.name else syscalls.AT_EMPTY_PATH)


class OpenObject(RealObject):
    """An object that is open for reading or writing: the calls are made on the descriptor, without a path."""

    __slots__ = ()

    def _reach(self) -> tuple[bytes | int, bool]:
        return self.fd, True

    def chmod(self, mode: int) -> None:
        os.fchmod(self.fd, mode)

    def keep_access_time(self) -> None:
        """Let no read change the time of access, where that is allowed (fcntl(2), F_SETFL, O_NOATIME)."""
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETFL, os.O_NOATIME)
        except PermissionError:
            pass  # of another user, as NFS may say


class MountPoint(RealObject):
    """A directory over which something is mounted: what is mounted is not entered, what lies below is not reached.

    It has no attributes, anybody may list it, and every other call answers EXDEV.

    Attributes:
        fd: of the directory that holds it.
    """

    __slots__ = ()

    def _reach(self) -> tuple[bytes | int, bool]:
        raise os_error(errno.EXDEV, self.name)

    def chmod(self, mode: int) -> None:
        raise os_error(errno.EXDEV, self.name)

    def stat(self) -> os.stat_result:
        raise os_error(errno.EXDEV, self.name)

    def open(self, flags: int) -> int:
        raise os_error(errno.EXDEV, self.name)

    def allows(self, rights: int) -> bool:
        return True

    def getxattr(self, name: bytes | str) -> bytes:
        raise os_error(errno.ENODATA, self.name)

    def listxattr(self) -> list[bytes]:
        return []
