"""A directory shown by a FUSE filesystem of no known kind, as those of servers are: it is told of each close(2), and
its answers are not kept for long.

    with far(place, directory) as pid:
        ...
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pyfuse3
import trio

from tests.support.mountinfo import mount_at
from tests.support.waiting import wait_until

T = TypeVar("T")

KEPT = 1.0
"""Seconds that the kernel believes an answer, unless said otherwise."""


def _answered(call: Callable[[], T]) -> T:
    try:
        return call()
    except OSError as error:
        raise pyfuse3.FUSEError(error.errno or 0) from None


class Far(pyfuse3.Operations):
    """Its handlers: for reading, by the paths that inodes were looked up with. There is no statfs."""

    def __init__(self, directory: str, kept: float) -> None:
        super().__init__()
        self._kept = kept
        self._paths = {pyfuse3.ROOT_INODE: os.fsencode(directory)}

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        st = _answered(lambda: os.lstat(self._paths[inode]))
        entry = pyfuse3.EntryAttributes()
        for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size"):
            setattr(entry, name, getattr(st, name))
        for name in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns"):
            setattr(entry, name, getattr(st, name))
        entry.st_ino = inode
        entry.st_blksize, entry.st_blocks = 4096, st.st_blocks
        entry.entry_timeout = entry.attr_timeout = self._kept
        return entry

    async def lookup(self, parent_inode: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        path = os.path.join(self._paths[parent_inode], name)
        st = _answered(lambda: os.lstat(path))
        inode = st.st_ino if st.st_ino > pyfuse3.ROOT_INODE else st.st_ino + (1 << 40)
        self._paths[inode] = path
        return await self.getattr(inode)

    async def readlink(self, inode: int, ctx: object = None) -> bytes:
        return _answered(lambda: os.readlink(self._paths[inode]))

    async def listxattr(self, inode: int, ctx: object = None) -> list[bytes]:
        path = self._paths[inode]
        return [os.fsencode(name) for name in _answered(lambda: os.listxattr(path, follow_symlinks=False))]

    async def getxattr(self, inode: int, name: bytes, ctx: object = None) -> bytes:
        return _answered(lambda: os.getxattr(self._paths[inode], name, follow_symlinks=False))

    async def opendir(self, inode: int, ctx: object = None) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for place, name in enumerate(sorted(os.listdir(self._paths[fh]))[start_id:], start_id + 1):
            entry = await self.lookup(fh, name)
            if not pyfuse3.readdir_reply(token, name, entry, place):
                return

    async def open(self, inode: int, flags: int, ctx: object = None) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=_answered(lambda: os.open(self._paths[inode], os.O_RDONLY)))

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return os.pread(fh, size, off)

    async def flush(self, fh: int) -> None:
        """close(2) waits for it."""

    async def release(self, fh: int) -> None:
        assert stat.S_ISREG(os.fstat(fh).st_mode)
        os.close(fh)


@contextmanager
def far(place: Path, directory: Path, kept: float = KEPT) -> Iterator[int]:
    """Show a directory at another, whose answers are believed for so many seconds. Gives the process that does."""
    command = [sys.executable, "-m", "tests.support.far", str(place), str(directory), str(kept)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as process:
        try:
            wait_until(lambda: mount_at(place) is not None, "the mount")
            yield process.pid
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()


@contextmanager
def stopped(daemon: int) -> Iterator[None]:
    """A process answers nothing in the block."""
    os.kill(daemon, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon, signal.SIGCONT)


def _serve(place: str, directory: str, kept: str) -> None:
    pyfuse3.init(Far(directory, float(kept)), place, {"fsname=far"})
    try:
        trio.run(_until_ended)
    finally:
        pyfuse3.close()


async def _until_ended() -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break


if __name__ == "__main__":
    _serve(*sys.argv[1:])
