"""The bytes of a copy-up: share the blocks, else let the kernel copy them, else copy them; holes stay holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from fuseunion.linux import syscalls

_CHUNK = 1 << 20
_SMALL = 1 << 16

# What FICLONE answers where a filesystem, or a pair of them, cannot (ioctl_ficlonerange(2)). EINVAL can be the file's.
_NEVER_SHARED = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.ENOSYS})
# copy_file_range(2) refuses across some filesystems, for some special files, and where seccomp forbids it.
_NOT_HERE = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})


class Unshared:
    """The devices whose files cannot share blocks with the target's: what was refused once is not asked for again.

    Used by several threads: a device is looked for, or added, and stays.
    """

    __slots__ = ("_devices",)

    def __init__(self) -> None:
        self._devices: set[int] = set()

    def __contains__(self, device: int) -> bool:
        return device in self._devices

    def learn(self, device: int, code: int) -> None:
        """Sharing with a file of a device answered an errno, which may be about the filesystem, or the file alone."""
        if code in _NEVER_SHARED:
            self._devices.add(device)


def copy(source: int, target: int, size: int, st: os.stat_result, unshared: Unshared) -> bool:
    """Copy the first `size` bytes of a file.

    Args:
        st: fstat of the source.
        unshared: of the target's filesystem.

    Returns:
        True when the blocks are shared and nothing needs to be flushed.

    Raises:
        OSError: EIO, ENOSPC, EDQUOT; EIO when the source is shorter than it was.
    """
    if size == 0:
        return False
    if size == st.st_size and st.st_dev not in unshared:
        try:
            syscalls.ficlone(target, source)
            return True
        except OSError as error:
            if error.errno not in _NOT_HERE and error.errno != errno.ENOTTY:
                raise
            unshared.learn(st.st_dev, error.errno)
    copied = 0
    for start, end in ((0, size),) if _is_dense(source, st) else data_segments(source, size):
        _copy_range(source, target, start, end)
        copied = end
    if copied < size:
        os.ftruncate(target, size)
    return False


def _is_dense(fd: int, st: os.stat_result) -> bool:
    """True for a file with as many blocks as bytes where reading a hole, if there is one, costs less than looking: for
    a small one, and for one in memory, where lseek(2) looks at each page (mm/shmem.c shmem_file_llseek)."""
    return st.st_blocks * 512 >= st.st_size and (st.st_size <= _SMALL or syscalls.is_in_memory(fd))


def data_segments(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The ranges of a file that hold data (lseek(2), SEEK_DATA); one range where holes cannot be told."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole up to the end
            start, end = offset, size
        if start >= size:
            return
        yield start, min(end, size)
        offset = end


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    offset = start
    while offset < end:
        try:
            copied = os.copy_file_range(source, target, end - offset, offset, offset)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            break
        if copied == 0:
            break  # some filesystems say 0 where they mean "not supported"; a real end shows below
        offset += copied
    while offset < end:
        data = os.pread(source, min(_CHUNK, end - offset), offset)
        if not data:
            raise OSError(errno.EIO, "the lower file became shorter while it was copied up")
        view = memoryview(data)
        while view:
            written = os.pwrite(target, view, offset)
            offset += written
            view = view[written:]
