"""Copy-ups under way: one at a time for each file, whatever comes in the meantime.

The union is a stand-in whose copies are moved in a thread that the test stops at a gate; the last tests use a real one.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fuseunion.core.ops.attributes import Change
from fuseunion.core.ops.copy_up.files import CopyJob
from fuseunion.core.tree.file import File
from fuseunion.engines.fuse.serving.copy_ups import CopyUps
from fuseunion.engines.fuse.serving.waiting.reader import Reader
from fuseunion.engines.fuse.serving.waiting.workers import COPIES, Workers
from tests.support.gate import Gate
from tests.support.inprocess import in_process

pytestmark = pytest.mark.trio

LIMIT = 5
"""Seconds for one test, should it hang."""


class FakeFile:
    """As much of a file as CopyUps looks at."""

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.in_upper = False
        self.st = None
        self.changes: list[Change | None] = []

    def names(self) -> Iterator[tuple[object, bytes]]:
        return iter(())


class Job:
    """A copy-up that notes its steps in the union's list, and fails where it is told to."""

    size = 0
    source = -1

    def __init__(self, union: FakeUnion, file: FakeFile, change: Change | None, *, quick: bool) -> None:
        self.quick = quick
        self._union = union
        self._file = file
        self._change = change

    def move(self) -> None:
        self._union.note("move", self._file)
        self._union.movers.append(threading.get_ident())
        if not self.quick:
            self._union.gates[self._file.ino].wait()
        self._union.fail("move")

    def publish(self) -> None:
        self._union.note("publish", self._file)
        self._union.fail("publish")
        self._file.in_upper = True
        self._file.changes.append(self._change)

    def close(self) -> None:
        self._union.note("close", self._file)
        self._union.fail("close")


class FakeUnion:
    """Gives out jobs; `failures` are raised one after the other, each at its step."""

    def __init__(self, *, quick: bool = False) -> None:
        self.steps: list[tuple[str, int]] = []
        self.movers: list[int] = []
        self.gates: dict[int, Gate] = {}
        self.failures: list[tuple[str, OSError]] = []
        self._quick = quick

    def file(self, ino: int) -> FakeFile:
        self.gates[ino] = Gate()
        return FakeFile(ino)

    def note(self, step: str, file: FakeFile) -> None:
        self.steps.append((step, file.ino))

    def fail(self, step: str) -> None:
        if self.failures and self.failures[0][0] == step:
            raise self.failures.pop(0)[1]

    class plain_copies:  # noqa: N801 - in the place of an attribute
        """None of them is plain."""

        waits = True

        @staticmethod
        def of(file: FakeFile, *, leaves: bool) -> None:
            """It is not."""

    def is_copied_quickly(self, file: FakeFile, change: Change | None) -> bool:
        return self._quick or file.ino == SPECIAL

    def copy_job(self, file: FakeFile, change: Change | None = None) -> Job | None:
        self.note("job", file)
        self.fail("job")
        if file.ino == SPECIAL:
            file.in_upper = True
            file.changes.append(change)
            return None
        return Job(self, file, change, quick=self._quick)


SPECIAL = 99
"""The number of a file that copy_job copies at once, as a symbolic link."""

WHOLE = ["job", "move", "publish", "close"]


def _copy_ups(union: object) -> CopyUps:
    workers = Workers()
    return CopyUps(union, workers, Reader(workers))  # type: ignore[arg-type]


class Callers:
    """Calls of CopyUps.done by name, with what each got."""

    def __init__(self, union: FakeUnion) -> None:
        self._copy_ups = _copy_ups(union)
        self.results: dict[str, bool | OSError] = {}

    async def call(self, name: str, file: FakeFile, change: Change | None = None) -> None:
        try:
            self.results[name] = await self._copy_ups.done(file, change)  # type: ignore[arg-type]
        except OSError as error:
            self.results[name] = error

    @property
    def under_way(self) -> int:
        return len(self._copy_ups._under_way)


@pytest.fixture
def union() -> FakeUnion:
    return FakeUnion()


@pytest.fixture
def callers(union: FakeUnion) -> Callers:
    return Callers(union)


def _steps(union: FakeUnion, ino: int = 1) -> list[str]:
    return [step for step, number in union.steps if number == ino]


async def test_one_file_is_copied_once(union: FakeUnion, callers: Callers) -> None:
    """The second caller waits until the first's copy is there; its own change is still to be made."""
    file = union.file(1)
    first, second = Change(mode=0o600), Change(mode=0o640)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(callers.call, "first", file, first)
            await union.gates[1].reached.wait()
            nursery.start_soon(callers.call, "second", file, second)
            nursery.start_soon(callers.call, "third", file)
            await wait_all_tasks_blocked()
            assert not callers.results
            assert callers.under_way == 1
            union.gates[1].open()
    assert callers.results == {"first": True, "second": False, "third": False}
    assert file.changes == [first]
    assert _steps(union) == WHOLE
    assert callers.under_way == 0


async def test_the_bytes_are_moved_in_a_thread(union: FakeUnion, callers: Callers) -> None:
    file = union.file(1)
    union.gates[1].open()
    await callers.call("first", file)
    assert union.movers != [threading.get_ident()]


async def test_a_quick_copy_needs_no_thread() -> None:
    union = FakeUnion(quick=True)
    callers = Callers(union)
    await callers.call("first", union.file(1))
    assert callers.results == {"first": True}
    assert union.movers == [threading.get_ident()]
    assert _steps(union) == WHOLE


async def test_what_is_copied_needs_nothing(union: FakeUnion, callers: Callers) -> None:
    file = union.file(1)
    file.in_upper = True
    await callers.call("first", file, Change(mode=0o600))
    assert callers.results == {"first": False}
    assert not union.steps


async def test_a_special_file_is_copied_at_once(union: FakeUnion, callers: Callers) -> None:
    """copy_job has made the change as well, so the answer is the same as after a job."""
    file = union.file(SPECIAL)
    change = Change(uid=7)
    await callers.call("first", file, change)
    assert callers.results == {"first": True}
    assert file.changes == [change]


async def test_two_files_at_the_same_time(union: FakeUnion, callers: Callers) -> None:
    one, two = union.file(1), union.file(2)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(callers.call, "one", one)
            await union.gates[1].reached.wait()
            nursery.start_soon(callers.call, "two", two)
            await union.gates[2].reached.wait()
            union.gates[2].open()
            while "two" not in callers.results:
                await trio.lowlevel.checkpoint()
            assert callers.results == {"two": True}
            union.gates[1].open()
    assert callers.results == {"one": True, "two": True}


@pytest.mark.parametrize("step", ["move", "publish"])
async def test_a_failure_is_the_callers_own(union: FakeUnion, callers: Callers, step: str) -> None:
    """Whose copy failed gets the error. One who waited for it has lost nothing, and makes the copy."""
    file = union.file(1)
    failure = OSError(errno.ENOSPC, "full")
    union.failures = [(step, failure)]
    mine = Change(mode=0o640)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(callers.call, "first", file, Change(mode=0o600))
            await union.gates[1].reached.wait()
            nursery.start_soon(callers.call, "second", file, mine)
            await wait_all_tasks_blocked()
            union.gates[1].open()
    assert callers.results == {"first": failure, "second": True}
    assert file.changes == [mine]
    failed = WHOLE if step == "publish" else ["job", "move", "close"]
    assert _steps(union) == [*failed, *WHOLE]


async def test_every_caller_meets_a_disk_that_stays_full(union: FakeUnion, callers: Callers) -> None:
    file = union.file(1)
    failures = [OSError(errno.ENOSPC, "full") for _ in range(3)]
    union.failures = [("move", failure) for failure in failures]
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            for name in ("first", "second", "third"):
                nursery.start_soon(callers.call, name, file)
            await union.gates[1].reached.wait()
            await wait_all_tasks_blocked()
            union.gates[1].open()
    assert set(map(id, callers.results.values())) == set(map(id, failures))
    assert _steps(union) == ["job", "move", "close"] * 3
    assert callers.under_way == 0


@pytest.mark.parametrize("step", ["job", "move", "publish", "close"])
async def test_a_failed_file_can_be_tried_again(union: FakeUnion, callers: Callers, step: str) -> None:
    file = union.file(1)
    union.gates[1].open()
    union.failures = [(step, OSError(errno.EDQUOT, "quota"))]
    with trio.fail_after(LIMIT):
        await callers.call("first", file)
        assert callers.under_way == 0
        await callers.call("again", file)
    assert isinstance(callers.results["first"], OSError)
    # close(2) of the copy may tell of a write that failed: its caller hears of it, though the copy is shown.
    assert callers.results["again"] is (step != "close")
    assert union.steps.count(("close", 1)) == union.steps.count(("job", 1)) - (step == "job")


async def test_a_close_that_fails_keeps_nobody_waiting(union: FakeUnion, callers: Callers) -> None:
    """After a copy that failed as well (a network filesystem that is full), those who wait make their own."""
    file = union.file(1)
    union.failures = [("move", OSError(errno.EDQUOT, "quota")), ("close", OSError(errno.EDQUOT, "quota"))]
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(callers.call, "first", file)
            await union.gates[1].reached.wait()
            nursery.start_soon(callers.call, "second", file)
            await wait_all_tasks_blocked()
            union.gates[1].open()
    assert isinstance(callers.results["first"], OSError)
    assert callers.results["second"] is True


async def test_a_waiter_that_is_cancelled(union: FakeUnion, callers: Callers) -> None:
    """It stops waiting at once, and nobody else notices."""
    file = union.file(1)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(callers.call, "first", file)
            await union.gates[1].reached.wait()
            nursery.start_soon(callers.call, "third", file)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as waiters:
                    waiters.start_soon(callers.call, "second", file)
                    await wait_all_tasks_blocked()
                    scope.cancel()
            assert scope.cancelled_caught
            assert not callers.results
            union.gates[1].open()
    assert callers.results == {"first": True, "third": False}
    assert _steps(union) == WHOLE


async def test_the_one_who_copies_is_cancelled_while_the_thread_works(union: FakeUnion, callers: Callers) -> None:
    """The thread cannot be stopped: its descriptors stay open until it has ended, and the copy is shown."""
    file = union.file(1)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as copying:
                    copying.start_soon(callers.call, "first", file)
                    await union.gates[1].reached.wait()
                    nursery.start_soon(callers.call, "second", file)
                    scope.cancel()
                    with trio.CancelScope(shield=True):
                        await wait_all_tasks_blocked()
                        assert _steps(union) == ["job", "move"]
                        assert not callers.results
                        union.gates[1].open()
    assert callers.results["second"] is False
    assert _steps(union) == WHOLE
    assert callers.under_way == 0


async def test_cancelled_before_the_thread_starts(union: FakeUnion, callers: Callers) -> None:
    """What was prepared is taken back, and the next caller copies."""
    file = union.file(1)
    union.gates[1].open()
    with trio.fail_after(LIMIT):
        with trio.CancelScope() as scope:
            scope.cancel()
            await callers.call("first", file)
        assert scope.cancelled_caught
        assert _steps(union) == ["job", "close"]
        assert callers.under_way == 0
        await callers.call("second", file)
    assert callers.results == {"second": True}


async def test_several_at_a_time_leave_a_thread(union: FakeUnion) -> None:
    """What fails is told when the others are done, and what was not begun is not begun."""
    files = [union.file(ino) for ino in range(1, 8)]
    union.failures = [("publish", OSError(errno.ENOSPC, "full"))]
    copy_ups = _copy_ups(union)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:

            async def copy() -> None:
                with pytest.raises(OSError, match="full"):
                    await copy_ups.all_done(files)  # type: ignore[arg-type]

            nursery.start_soon(copy)
            begun = files[: COPIES - 1]
            for file in begun:
                await union.gates[file.ino].reached.wait()
            await wait_all_tasks_blocked()
            assert {ino for step, ino in union.steps if step == "job"} == {file.ino for file in begun}
            for file in begun:
                union.gates[file.ino].open()
    assert sum(file.in_upper for file in files) == len(begun) - 1
    assert {ino for step, ino in union.steps if step == "job"} == {file.ino for file in begun}
    assert not copy_ups._under_way


# -- a real union ------------------------------------------------------------------------------------------------------


def _layers(base: Path) -> tuple[Path, Path, Path]:
    for name in ("lower", "upper", "work"):
        (base / name).mkdir()
    (base / "lower/file").write_bytes(b"content")
    return base / "lower", base / "upper", base / "work"


async def test_the_change_comes_with_the_copy(tmp_path: Path) -> None:
    """Of two callers who change a file at the same time, one's change is in the copy that is shown first."""
    lower, upper, work = _layers(tmp_path)
    with in_process([lower], upper, work) as inside, trio.fail_after(LIMIT):
        file = inside.find("file")
        assert isinstance(file, File)
        copy_ups = _copy_ups(inside.union)
        made: list[tuple[int, bool]] = []

        async def change(mode: int) -> None:
            made.append((mode, await copy_ups.done(file, Change(mode=mode))))
            shown.append((upper / "file").stat().st_mode & 0o7777)

        shown: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change, 0o600)
            nursery.start_soon(change, 0o640)
        [first] = [mode for mode, with_copy in made if with_copy]
        assert set(shown) == {first}
        assert (upper / "file").read_bytes() == b"content"
        assert not list((work / "work").iterdir())


async def test_a_copy_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After ENOSPC in the thread there is no name in the upper and no garbage in work; and then it works."""
    lower, upper, work = _layers(tmp_path)

    def full(*arguments: object) -> bool:
        raise OSError(errno.ENOSPC, "full")

    with in_process([lower], upper, work) as inside, trio.fail_after(LIMIT):
        file = inside.find("file")
        assert isinstance(file, File)
        copy_ups = _copy_ups(inside.union)
        with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
            patch.setattr("fuseunion.core.copying.copy_data.copy", full)
            await copy_ups.done(file)
        assert not list(upper.iterdir())
        assert not list((work / "work").iterdir())
        assert await copy_ups.done(file) is True
        assert (upper / "file").read_bytes() == b"content"


@pytest.mark.parametrize("cold", [True, False], ids=["cold", "cached"])
async def test_a_quick_copy_does_not_wait_for_a_disk_in_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cold: bool
) -> None:
    """A small file of a volatile mount is copied in the loop only when the page cache holds it."""
    lower, upper, work = _layers(tmp_path)
    (lower / "file").read_bytes()
    movers: list[int] = []
    move = CopyJob.move

    def noted(job: CopyJob) -> None:
        movers.append(threading.get_ident())
        move(job)

    def nowait(fd: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        assert flags == os.RWF_NOWAIT
        if cold:
            raise BlockingIOError(errno.EAGAIN, "not cached")
        return len(buffers[0])

    monkeypatch.setattr(CopyJob, "move", noted)
    monkeypatch.setattr(os, "preadv", nowait)
    with in_process([lower], upper, work, volatile=True) as inside, trio.fail_after(LIMIT):
        file = inside.find("file")
        assert isinstance(file, File)
        assert await _copy_ups(inside.union).done(file) is True
    assert [mover == threading.get_ident() for mover in movers] == [not cold]
    assert (upper / "file").read_bytes() == b"content"
