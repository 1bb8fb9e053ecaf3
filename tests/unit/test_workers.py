"""The worker threads of a mount: each kind of work has its own, and none at all is no error."""

from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fuseunion.core.tree.file import File
from fuseunion.engines.fuse.asking.settle import settle
from fuseunion.engines.fuse.pyfuse.operations import Operations
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.serving.waiting.workers import COPIES, Workers
from tests.support.gate import Gate
from tests.support.inprocess import in_process

pytestmark = pytest.mark.trio

LIMIT = 5
"""Seconds for one test, should it hang."""


async def _open_when_full(gate: Gate) -> None:
    """Let copies go on once as many as may have come to the gate."""
    while gate.passes < COPIES:
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()
    assert gate.passes == COPIES
    gate.open()


async def test_reads_and_fsync_do_not_wait_behind_copies() -> None:
    """With far more copies asked for than threads there are by default, others get theirs at once."""
    workers, gate = Workers(), Gate()
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            for _ in range(150):
                nursery.start_soon(workers.copy, gate.wait)
            await gate.reached.wait()
            await wait_all_tasks_blocked()
            assert await workers.read(lambda: "read") == "read"
            assert await workers.sync(lambda: "synced") == "synced"
            assert gate.passes <= COPIES
            assert not workers.at_rest
            await _open_when_full(gate)
    assert gate.passes == 150
    assert workers.at_rest


async def test_a_mount_with_many_copy_ups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """150 files are written to at once: another file answers getattr, read from a cold disk, and fsync meanwhile."""
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    for number in range(150):
        (tmp_path / "lower" / f"f{number}").write_bytes(b"content")
    (tmp_path / "upper/other").write_bytes(b"other")
    gate = Gate()

    def slow(*arguments: object) -> bool:
        gate.wait()
        return False

    def cold(fd: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        raise BlockingIOError(errno.EAGAIN, "not cached")

    with in_process([tmp_path / "lower"], tmp_path / "upper", tmp_path / "work") as inside, trio.fail_after(LIMIT):
        requests = Requests(inside.union)
        operations = Operations(requests)
        monkeypatch.setattr("fuseunion.core.copying.copy_data.copy", slow)
        monkeypatch.setattr(os, "preadv", cold)
        other = inside.find("other")
        ctx = SimpleNamespace(uid=0, gid=0, pid=0, umask=0)
        opened = await operations.open(other.ino, os.O_RDWR, ctx)  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            for number in range(150):
                file = inside.find(f"f{number}")
                assert isinstance(file, File)
                nursery.start_soon(requests.copy_ups.done, file)
            await gate.reached.wait()
            await wait_all_tasks_blocked()
            assert (await operations.getattr(other.ino, ctx)).st_size == 5  # type: ignore[arg-type]
            assert await operations.read(opened.fh, 0, 100) == b"other"
            await operations.fsync(opened.fh, False)
            assert not requests.workers.at_rest
            await _open_when_full(gate)
        await operations.release(opened.fh)
        assert requests.workers.at_rest


class Watched(Workers):
    """Knows how often somebody asked whether there is work."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    @property
    def at_rest(self) -> bool:
        self.looks += 1
        return super().at_rest

    async def looked_at(self) -> None:
        """Return when that was asked a few more times."""
        enough = self.looks + 5
        while self.looks < enough:
            await trio.lowlevel.checkpoint()


async def test_settled_when_nobody_works() -> None:
    """Writing out waits for each kind of thread, and for who is between two steps."""
    workers, done = Watched(), trio.Event()
    reading, writing = os.pipe()
    try:

        async def asked() -> None:
            await settle(reading, workers)
            done.set()

        for work in (workers.copy, workers.read, workers.sync):
            gate, done = Gate(), trio.Event()
            with trio.fail_after(LIMIT):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(work, gate.wait)
                    await gate.reached.wait()
                    nursery.start_soon(asked)
                    await workers.looked_at()
                    assert not done.is_set()
                    gate.open()
                    await done.wait()
        done = trio.Event()
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                with workers.long_operation():
                    nursery.start_soon(asked)
                    await workers.looked_at()
                    assert not done.is_set()
                await done.wait()
    finally:
        os.close(reading)
        os.close(writing)


# -- no thread can be made ---------------------------------------------------------------------------------------------


@pytest.fixture
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(function: object, deliver: object, name: str | None = None) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("trio._threads.start_thread_soon", start)


@pytest.mark.usefixtures("_no_threads")
async def test_without_threads_the_loop_does_the_work(caplog: pytest.LogCaptureFixture) -> None:
    workers, threads = Workers(), []
    with caplog.at_level(logging.WARNING):
        await workers.copy(lambda: threads.append(threading.get_ident()))
        assert await workers.read(os.strerror, errno.EIO) == os.strerror(errno.EIO)
        with pytest.raises(OSError, match="full"):
            await workers.sync(_full)
    assert threads == [threading.get_ident()]
    assert workers.at_rest
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # said once


def _full() -> None:
    raise OSError(errno.ENOSPC, "full")


async def test_an_error_of_the_work_is_not_one_of_the_thread() -> None:
    calls = []

    def broken() -> None:
        calls.append(threading.get_ident())
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await Workers().read(broken)
    assert len(calls) == 1


async def test_a_rename_is_under_way_from_the_call(tmp_path: Path) -> None:
    """Its task runs later, and what must not come in between looks before that."""
    for name in ("lower/d", "upper", "work"):
        (tmp_path / name).mkdir(parents=True)
    for number in range(200):
        (tmp_path / f"lower/d/{number}").write_bytes(b"x")
    with in_process([tmp_path / "lower"], tmp_path / "upper", tmp_path / "work") as inside, trio.fail_after(LIMIT):
        requests = Requests(inside.union)
        later = requests.rename(inside.union.root.ino, b"d", inside.union.root.ino, b"e", 0)
        assert later is not None and requests.workers.in_long_operation
        await later
        assert not requests.workers.in_long_operation
        assert len(inside.names("/e")) == 200
