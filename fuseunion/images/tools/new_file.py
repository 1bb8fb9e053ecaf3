"""A file that has its name only once it is whole.

It is made without any name (O_TMPFILE, open(2)) in the directory where it will be, so that nothing is left of it
however the command ends; to take the place of another it needs a hidden name beside that for a moment. Where the
filesystem has no such files (NFS, Lustre) it has one from the beginning, which goes when the command ends, but not when
it is killed.

It is on disk before it has its name, and it never takes the name of something that is there, unless it is made in the
place of that.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from fuseunion.errors import ExitCode, UserError

_NO_NAMELESS = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT})
"""What open(2) says of O_TMPFILE where there is none: the filesystem's answer, and those of older kernels."""


class NewFile:
    """A file on its way; made by `beside`.

    Attributes:
        fd: of it, O_RDWR.
    """

    def __init__(self, directory_fd: int, path: str) -> None:
        self.path = path
        self._name = os.fsencode(os.path.basename(path))
        self._directory_fd = directory_fd
        self._hidden = b".%s.fuseunion-%s" % (self._name[:200], secrets.token_hex(4).encode())
        self._has_name = False
        try:
            self.fd = self._made()
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None

    def _made(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(b".", flags | os.O_TMPFILE, 0o600, dir_fd=self._directory_fd)
        except OSError as error:
            if error.errno not in _NO_NAMELESS:
                raise
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = os.open(self._hidden, flags, 0o600, dir_fd=self._directory_fd)
        self._has_name = True
        return fd

    def publish(self) -> None:
        """Put it on disk, and give it its name.

        Raises:
            UserError: LAYERS: something has that name.
            OSError: ENOSPC, EIO.
        """
        os.fsync(self.fd)
        try:
            self._link(self._name)
        except FileExistsError:
            raise exists(self.path) from None
        self.forget()
        os.fsync(self._directory_fd)

    def replace(self) -> None:
        """Put it on disk, and give it the name of what it was made from, which goes.

        Raises:
            OSError: ENOSPC, EIO.
        """
        os.fsync(self.fd)
        if not self._has_name:
            self._link(self._hidden)
            self._has_name = True
        os.rename(self._hidden, self._name, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd)
        self._has_name = False
        os.fsync(self._directory_fd)

    def forget(self) -> None:
        """Take the hidden name away, where it has one."""
        if self._has_name:
            os.unlink(self._hidden, dir_fd=self._directory_fd)
            self._has_name = False

    def close(self) -> None:
        """Forget it, unless it was published."""
        try:
            self.forget()
        finally:
            os.close(self.fd)

    def _link(self, name: bytes) -> None:
        """linkat(2) through the magic link, which asks for no privilege; never over something else."""
        os.link(
            b"/proc/self/fd/%d" % self.fd,
            name,
            src_dir_fd=self._directory_fd,
            dst_dir_fd=self._directory_fd,
            follow_symlinks=True,
        )


def exists(path: str) -> UserError:
    """The refusal to make what is there."""
    return UserError(f"'{path}' exists; give another name, or remove it first", ExitCode.LAYERS)


@contextmanager
def beside(path: str, *, replaces: bool = False) -> Iterator[NewFile]:
    """A new file in the directory of a path.

    Args:
        path: what it is to be called.
        replaces: whether something may have that name.

    Raises:
        UserError: LAYERS: something is there; its directory is not.
        OSError: EACCES, ENOSPC, as open(2).
    """
    if not replaces and os.path.lexists(path):
        raise exists(path)
    directory = os.path.dirname(path) or "."
    try:
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"there is no directory '{directory}' for '{path}'", ExitCode.LAYERS) from None
    try:
        new = NewFile(directory_fd, path)
        try:
            yield new
        finally:
            new.close()
    finally:
        os.close(directory_fd)
