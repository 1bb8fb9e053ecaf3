"""Reads that never stall the loop: what the page cache holds is read at once, the rest in a worker thread.

preadv2(2) with RWF_NOWAIT says EAGAIN, or reads less than asked, where it would have to wait for a disk. Filesystems
that do not know the flag say EOPNOTSUPP: those that live in memory are read directly, the others always in a thread.
"""

from __future__ import annotations

import errno
import os
from typing import cast

from fuseunion.engines.fuse.serving.workers import Workers
from fuseunion.linux import mountinfo

# statfs(2) f_type is not offered by Python; the names in /proc/self/mountinfo would cost a parse per device.
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "rootfs"})


class Reader:
    """Remembers, per filesystem, whether it knows RWF_NOWAIT.

    Args:
        workers: whose threads wait for a disk.
    """

    __slots__ = ("_direct", "_workers")

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        # st_dev -> True to read in the loop, False to read in a thread; absent: RWF_NOWAIT works.
        self._direct: dict[int, bool] = {}

    async def read(self, fd: int, offset: int, size: int) -> bytes:
        """pread(2) of up to `size` bytes; less only at the end of the file.

        Raises:
            OSError: EIO and the like.
        """
        buffer = bytearray(size)
        try:
            count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return await self._workers.read(os.pread, fd, size, offset)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return await self._read_without_flag(fd, offset, size)
        if count < size:
            if offset + count < os.fstat(fd).st_size:
                return await self._workers.read(os.pread, fd, size, offset)
            del buffer[count:]
        # pyfuse3 takes any buffer; a copy into bytes would only cost time.
        return cast(bytes, buffer)

    async def _read_without_flag(self, fd: int, offset: int, size: int) -> bytes:
        if self._is_in_memory(fd):
            return os.pread(fd, size, offset)
        return await self._workers.read(os.pread, fd, size, offset)

    def _is_in_memory(self, fd: int) -> bool:
        """Whether a file lies on a filesystem that never waits for a disk."""
        device = os.fstat(fd).st_dev
        direct = self._direct.get(device)
        if direct is None:
            direct = self._direct[device] = mountinfo.filesystem_type(device) in _IN_MEMORY
        return direct

    def would_wait(self, fd: int, size: int) -> bool:
        """Whether reading the first `size` bytes of a file would have to wait for a disk.

        Raises:
            OSError: EIO and the like.
        """
        try:
            return os.preadv(fd, [bytearray(size)], 0, os.RWF_NOWAIT) < size
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return not self._is_in_memory(fd)
