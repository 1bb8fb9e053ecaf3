"""Reads: from the page cache in the loop, else in a thread, so that a slow disk holds up nobody else.

preadv2(2) is the real one where the disk's behaviour does not matter. Where it does (the cache is cold, the filesystem
does not know RWF_NOWAIT) a stand-in answers for one descriptor.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fuseunion.engines.fuse.serving.waiting.later import ended
from fuseunion.engines.fuse.serving.waiting.reader import Reader
from fuseunion.engines.fuse.serving.waiting.workers import Workers
from fuseunion.linux import syscalls
from tests.support.gate import Gate

pytestmark = pytest.mark.trio

LIMIT = 5
"""Seconds for one test, should it hang."""

CONTENT = bytes(range(256)) * 64


class Disk:
    """os.preadv and os.pread, which note what was asked in which thread; and do otherwise where the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, bool]] = []
        """The name of each call, and whether the loop's thread made it."""
        self.nowait: Callable[[int], int | None] = lambda fd: None
        """What RWF_NOWAIT does: raise, read so many bytes, or None for the real thing."""
        self.slow: dict[int, Gate] = {}
        self.broken: dict[int, OSError] = {}
        self._loop = threading.get_ident()
        self._preadv, self._pread = os.preadv, os.pread
        monkeypatch.setattr(os, "preadv", self._read_nowait)
        monkeypatch.setattr(os, "pread", self._read_waiting)

    def _note(self, name: str) -> None:
        self.calls.append((name, threading.get_ident() == self._loop))

    def _read_nowait(self, fd: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        self._note("preadv")
        assert flags == os.RWF_NOWAIT
        most = self.nowait(fd)
        if most is None:
            return self._preadv(fd, buffers, offset)
        data = self._pread(fd, min(most, len(buffers[0])), offset)
        buffers[0][: len(data)] = data
        return len(data)

    def _read_waiting(self, fd: int, size: int, offset: int) -> bytes:
        self._note("pread")
        if fd in self.slow:
            self.slow[fd].wait()
        if fd in self.broken:
            raise self.broken[fd]
        return self._pread(fd, size, offset)


CACHED = [("preadv", True)]
IN_THREAD = [("preadv", True), ("pread", False)]
DIRECT = [("preadv", True), ("pread", True)]


async def _read(reader: Reader, fd: int, offset: int, size: int) -> bytes:
    return bytes(await ended(reader.read(fd, offset, size)))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(CONTENT)
    opened = os.open(tmp_path / "file", os.O_RDONLY)
    yield opened
    os.close(opened)


def _cold(fd: int) -> int:
    raise BlockingIOError(errno.EAGAIN, "would wait")


def _without_flag(fd: int) -> int:
    raise OSError(errno.EOPNOTSUPP, "no such flag")


async def test_the_real_calls(tmp_path: Path, fd: int) -> None:
    """Nothing is replaced: whichever way the filesystem here takes, the bytes are right."""
    reader = Reader(Workers())
    assert await _read(reader, fd, 0, len(CONTENT)) == CONTENT
    assert await _read(reader, fd, 100, 50) == CONTENT[100:150]
    assert await _read(reader, fd, len(CONTENT) - 10, 100) == CONTENT[-10:]
    assert await _read(reader, fd, len(CONTENT) + 10, 100) == b""


async def test_what_is_cached_is_read_in_the_loop(disk: Disk, fd: int) -> None:
    assert await _read(Reader(Workers()), fd, 3, 1000) == CONTENT[3:1003]
    assert disk.calls == CACHED


async def test_what_is_not_cached_is_read_in_a_thread(disk: Disk, fd: int) -> None:
    disk.nowait = _cold
    assert await _read(Reader(Workers()), fd, 3, 1000) == CONTENT[3:1003]
    assert disk.calls == IN_THREAD


async def test_the_end_of_the_file_needs_no_thread(disk: Disk, fd: int) -> None:
    reader = Reader(Workers())
    assert await _read(reader, fd, len(CONTENT) - 7, 100) == CONTENT[-7:]
    assert await _read(reader, fd, len(CONTENT), 100) == b""
    assert disk.calls == CACHED * 2


@pytest.mark.parametrize("cached", [1, 4096])
async def test_a_file_of_which_a_part_is_cached(disk: Disk, fd: int, cached: int) -> None:
    """A short answer in the middle of a file is not its end: FUSE would take it for one."""
    disk.nowait = lambda _: cached
    assert await _read(Reader(Workers()), fd, 10, 8192) == CONTENT[10:8202]
    assert disk.calls == IN_THREAD


async def test_without_the_flag_on_a_disk(disk: Disk, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.nowait = _without_flag
    monkeypatch.setattr(syscalls, "is_in_memory", lambda fd: False)
    assert await _read(Reader(Workers()), fd, 3, 1000) == CONTENT[3:1003]
    assert disk.calls == IN_THREAD


async def test_without_the_flag_in_memory(disk: Disk, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.nowait = _without_flag
    monkeypatch.setattr(syscalls, "is_in_memory", lambda fd: True)
    assert await _read(Reader(Workers()), fd, 3, 1000) == CONTENT[3:1003]
    assert disk.calls == DIRECT


async def test_a_filesystem_is_looked_up_once(disk: Disk, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def is_in_memory(fd: int) -> bool:
        asked.append(os.fstat(fd).st_dev)
        return False

    disk.nowait = _without_flag
    monkeypatch.setattr(syscalls, "is_in_memory", is_in_memory)
    reader = Reader(Workers())
    for _ in range(3):
        await _read(reader, fd, 0, 10)
    assert asked == [os.fstat(fd).st_dev]


@pytest.mark.parametrize("where", ["/dev/shm", "/var/tmp"])
async def test_what_a_directory_is_on_says_whether_its_files_may_wait(where: str) -> None:
    """Before any of them was read; of what is mounted in it nothing is known."""
    reader = Reader(Workers())
    fd = os.open(where, os.O_PATH)
    in_memory = syscalls.is_in_memory(fd)
    assert reader.may_wait(os.fstat(fd).st_dev), "nothing is known"
    for _ in range(2):
        assert reader.may_wait(os.fstat(fd).st_dev, fd) == (not in_memory)
        assert reader.may_wait(os.fstat(fd).st_dev) == (not in_memory)
        assert reader.may_wait(os.fstat(fd).st_dev + 1, fd)
    os.close(fd)
    assert in_memory or where != "/dev/shm"


@pytest.mark.parametrize("code", [errno.EIO, errno.EBADF])
async def test_an_error_in_the_loop(disk: Disk, fd: int, code: int) -> None:
    def broken(_: int) -> int:
        raise OSError(code, os.strerror(code))

    disk.nowait = broken
    with pytest.raises(OSError) as caught:
        await _read(Reader(Workers()), fd, 0, 10)
    assert caught.value.errno == code
    assert disk.calls == CACHED


@pytest.mark.parametrize("nowait", [_cold, _without_flag, lambda _: 5], ids=["cold", "no flag", "short"])
async def test_an_error_in_the_thread(disk: Disk, fd: int, nowait: Callable[[int], int]) -> None:
    disk.nowait = nowait
    disk.broken[fd] = OSError(errno.EIO, "a bad block")
    with pytest.raises(OSError, match="a bad block"):
        await _read(Reader(Workers()), fd, 0, 10)


async def test_a_slow_read_holds_up_nobody(disk: Disk, fd: int, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    other = os.open(tmp_path / "other", os.O_RDONLY)
    gate = disk.slow[fd] = Gate()
    disk.nowait = lambda asked: _cold(asked) if asked == fd else None
    reader = Reader(Workers())
    got: list[bytes] = []

    async def slowly() -> None:
        got.append(await _read(reader, fd, 0, 5))

    try:
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(slowly)
                await gate.reached.wait()
                got.append(await _read(reader, other, 0, 5))
                await wait_all_tasks_blocked()
                assert got == [b"other"]
                gate.open()
    finally:
        os.close(other)
    assert got == [b"other", CONTENT[:5]]


async def test_a_cancelled_read_keeps_its_descriptor_until_the_thread_has_ended(disk: Disk, fd: int) -> None:
    """The number may be another file's once it is closed, so nobody may be told before that the read is over."""
    gate = disk.slow[fd] = Gate()
    disk.nowait = _cold
    over = trio.Event()

    async def reading() -> None:
        try:
            await _read(Reader(Workers()), fd, 0, 5)
        finally:
            over.set()

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reading)
            await gate.reached.wait()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
                assert not over.is_set()
                gate.open()
    assert over.is_set()
