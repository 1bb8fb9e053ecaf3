"""Reads that never stall the loop: what the page cache holds is read at once, the rest in a worker thread.

preadv2(2) with RWF_NOWAIT says EAGAIN, or reads less than asked, where it would have to wait for a disk. Filesystems
that do not know the flag say EOPNOTSUPP: those that live in memory are read directly, the others always in a thread.
"""

from __future__ import annotations

import errno
import os
from typing import cast

from fuseunion.engines.fuse.serving.waiting.later import Later
from fuseunion.engines.fuse.serving.waiting.workers import Workers
from fuseunion.linux import syscalls


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

    def read(self, fd: int, offset: int, size: int) -> bytes | Later[bytes]:
        """pread(2) of up to `size` bytes; less only at the end of the file.

        Raises:
            OSError: EIO and the like.
        """
        data = self.at_once(fd, offset, size)
        return self._workers.read(os.pread, fd, size, offset) if data is None else data

    def at_once(self, fd: int, offset: int, size: int) -> bytes | None:
        """As `read`; None where a disk would have to be waited for."""
        buffer = bytearray(size)
        try:
            count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return os.pread(fd, size, offset) if self.never_waits(fd) else None
        if count < size:
            if offset + count < os.fstat(fd).st_size:
                return None
            del buffer[count:]
        # pyfuse3 takes any buffer; a copy into bytes would only cost time.
        return cast(bytes, buffer)

    def never_waits(self, fd: int) -> bool:
        """Whether a file lies on a filesystem in memory."""
        device = syscalls.device(fd)
        direct = self._direct.get(device)
        if direct is None:
            direct = self._direct[device] = syscalls.is_in_memory(fd)
        return direct

    def may_wait(self, device: int, directory: int | None = None) -> bool:
        """Whether files of a filesystem may lie on a disk, for all that is known.

        Args:
            device: its st_dev.
            directory: to find it out by, a descriptor of what has their names, which is on the same mostly; None where
                it may be on a server, which that would ask.
        """
        if device not in self._direct and directory is not None:
            self.never_waits(directory)
        return not self._direct.get(device)

    def would_wait(self, fd: int, size: int, offset: int = 0) -> bool:
        """Whether reading some bytes of a file would have to wait for a disk.

        Raises:
            OSError: EIO and the like.
        """
        if self.never_waits(fd):
            return False
        try:
            return os.preadv(fd, [bytearray(size)], offset, os.RWF_NOWAIT) < size
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return True
