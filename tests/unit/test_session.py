"""How a mount ends, and what it survives: the trio side, with a stand-in for pyfuse3.

Time is trio.testing.MockClock's and moves only where a test moves it; signals are real ones. What pyfuse3.main does is
a list of acts, one for each time that it is called.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fuseunion.core.tree.state import Settings
from fuseunion.engines.fuse import session
from fuseunion.engines.fuse.asking.watching.busiest import Busiest
from fuseunion.engines.fuse.mount_point import MountPoint
from fuseunion.engines.fuse.pyfuse.negotiation import Negotiation
from fuseunion.engines.fuse.pyfuse.operations import Operations
from tests.support.gate import Gate

Act = Callable[[], Awaitable[None]]


class FakePyfuse3:
    """What the session uses of pyfuse3. After the last act, main goes on until `terminate`, as a mount in use does."""

    def __init__(self) -> None:
        self.acts: list[Act] = []
        self.mains = 0
        self.serving = trio.Event()
        """main has nothing more to act, and waits."""
        self.terminated = trio.Event()
        self.given: list[object] = []
        self.closed: list[bool] = []

    def init(self, operations: object, target: str, options: set[str]) -> None:
        self.given = [operations, target, options]

    async def main(self, max_tasks: int) -> None:
        self.mains += 1
        if self.acts:
            await self.acts.pop(0)()
            return
        self.serving.set()
        await self.terminated.wait()

    def terminate(self) -> None:
        self.terminated.set()

    def close(self, *, unmount: bool) -> None:
        self.closed.append(unmount)


class FakeNegotiation:
    """A first exchange that is over, or one that ends as the test says."""

    def __init__(self, *, done: bool = True) -> None:
        self.done = done
        self.error: OSError | None = None
        self.finish = trio.Event()
        self._started_done = done

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        if self._started_done:
            return
        await self.finish.wait()
        if self.error is not None:
            raise self.error
        self.done = True


class FakeMountPoint:
    """A mount point that is taken away at once, or fails, or is stopped at a gate."""

    path = "/merged"

    def __init__(self) -> None:
        self.unmounts = 0
        self.gate: Gate | None = None
        self.error: OSError | None = None

    def unmount(self) -> None:
        self.unmounts += 1
        if self.gate is not None:
            self.gate.wait()
        if self.error is not None:
            raise self.error


class Stage:
    """A session and all that it meets."""

    def __init__(self, fake: FakePyfuse3) -> None:
        self.pyfuse3 = fake
        self.mount_point = FakeMountPoint()
        self.negotiation: Any = FakeNegotiation()
        self.ready = 0
        self.ended = False

    def _on_ready(self) -> None:
        self.ready += 1

    async def run(self) -> None:
        """The session, to its end."""
        mount_point: Any = self.mount_point
        await session._main(self.negotiation, mount_point, self._on_ready)
        self.ended = True


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Stage:
    fake = FakePyfuse3()
    monkeypatch.setattr(session, "pyfuse3", fake)
    caplog.set_level(logging.INFO)
    return Stage(fake)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The signals are blocked as the daemon has them, and afterwards as they were; none is left pending."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, session.SIGNALS)
    yield
    while signal.sigpending() & set(session.SIGNALS):
        signal.sigtimedwait(session.SIGNALS, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    """A session that does not end fails its test: time stands still, so trio's own limits would not."""

    def give_up(*_: object) -> None:
        pytest.fail("the session did not end")  # no Exception, which the session would take for one of pyfuse3

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _raises(error: BaseException) -> Act:
    async def act() -> None:
        raise error

    return act


async def _returns() -> None:
    return


def _blocked() -> set[signal.Signals]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ())) & set(session.SIGNALS)


def _loud(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- unmounted ---------------------------------------------------------------------------------------------------------

GONE = [errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN]


@pytest.mark.trio
@pytest.mark.parametrize("code", GONE)
async def test_it_ends_when_it_is_unmounted(
    stage: Stage, mock_clock: MockClock, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """The kernel's answer may come out of several of pyfuse3's workers at once, in groups."""
    error = OSError(code, os.strerror(code))
    stage.pyfuse3.acts = [_raises(ExceptionGroup("workers", [error, ExceptionGroup("inner", [error])]))]
    await stage.run()
    assert (stage.ready, stage.pyfuse3.mains, stage.mount_point.unmounts) == (1, 1, 0)
    assert not _loud(caplog)


@pytest.mark.trio
async def test_it_ends_when_pyfuse3_returns(
    stage: Stage, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    stage.pyfuse3.acts = [_returns]
    await stage.run()
    assert stage.pyfuse3.mains == 1
    assert not _loud(caplog)


@pytest.mark.trio
async def test_no_signal_disturbs_the_end(stage: Stage, mock_clock: MockClock) -> None:
    """Apptainer and systemd unmount and then signal the process that is still there, with upper and work to close."""
    stage.pyfuse3.acts = [_returns]
    await stage.run()
    assert _blocked() == set(session.SIGNALS)
    signal.raise_signal(signal.SIGTERM)
    assert signal.SIGTERM in signal.sigpending()


@pytest.mark.trio
async def test_signals_are_taken_before_the_mount_is_called_ready(stage: Stage, mock_clock: MockClock) -> None:
    open_at_ready: list[set[signal.Signals]] = []
    stage._on_ready = lambda: open_at_ready.append(_blocked())  # type: ignore[method-assign]
    stage.pyfuse3.acts = [_returns]
    await stage.run()
    assert open_at_ready == [set()]


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.trio
@pytest.mark.parametrize("number", session.SIGNALS)
async def test_it_ends_on_a_signal(
    stage: Stage, mock_clock: MockClock, caplog: pytest.LogCaptureFixture, number: signal.Signals
) -> None:
    """Unmounted, terminated, and out: no time passes."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        await stage.pyfuse3.serving.wait()
        signal.raise_signal(number)
    assert stage.mount_point.unmounts == 1
    assert stage.pyfuse3.terminated.is_set()
    assert stage.pyfuse3.mains == 1
    assert not _loud(caplog)
    assert trio.current_time() == 0


@pytest.mark.trio
async def test_a_signal_that_came_before_the_loop(stage: Stage, mock_clock: MockClock) -> None:
    signal.raise_signal(signal.SIGTERM)
    await stage.run()
    assert stage.mount_point.unmounts == 1
    assert stage.ready == 1


@pytest.mark.trio
async def test_requests_are_answered_while_it_unmounts(stage: Stage, mock_clock: MockClock) -> None:
    """umount2(2) writes dirty pages to us and waits for the answer: the loop must not stand meanwhile."""
    gate = stage.mount_point.gate = Gate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        await stage.pyfuse3.serving.wait()
        signal.raise_signal(signal.SIGTERM)
        await gate.reached.wait()
        await wait_all_tasks_blocked()  # other tasks run
        assert not stage.pyfuse3.terminated.is_set()
        gate.open()
    assert stage.ended


@pytest.mark.trio
async def test_an_unmount_that_hangs(stage: Stage, mock_clock: MockClock) -> None:
    """After the grace the loop ends all the same; the thread is left behind."""
    gate = stage.mount_point.gate = Gate()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.run)
            await stage.pyfuse3.serving.wait()
            signal.raise_signal(signal.SIGTERM)
            await gate.reached.wait()
            await wait_all_tasks_blocked()
            mock_clock.jump(session._GRACE * 0.9)
            await wait_all_tasks_blocked()
            assert not stage.pyfuse3.terminated.is_set()
            mock_clock.jump(session._GRACE * 0.2)
            await stage.pyfuse3.terminated.wait()
    finally:
        gate.open()
    assert stage.ended


@pytest.mark.trio
async def test_an_unmount_that_fails(stage: Stage, mock_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    stage.mount_point.error = OSError(errno.EPERM, "not permitted")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        await stage.pyfuse3.serving.wait()
        signal.raise_signal(signal.SIGTERM)
    assert stage.ended
    assert _loud(caplog) == ["cannot unmount '/merged': not permitted"]


@pytest.mark.trio
async def test_requests_that_stay_unanswered(
    stage: Stage, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that waits for a dead network filesystem: it gets the grace, not more."""
    stuck = trio.Event()

    async def hang() -> None:
        stuck.set()
        await trio.sleep_forever()

    stage.pyfuse3.acts = [hang]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        await stuck.wait()
        signal.raise_signal(signal.SIGTERM)
        await stage.pyfuse3.terminated.wait()
        await wait_all_tasks_blocked()
        mock_clock.jump(session._GRACE * 0.9)
        await wait_all_tasks_blocked()
        assert not stage.ended
        mock_clock.jump(session._GRACE * 0.2)
    assert stage.ended
    assert stage.pyfuse3.mains == 1
    [line] = _loud(caplog)
    assert "given up" in line


# -- pyfuse3 gives up --------------------------------------------------------------------------------------------------


@pytest.mark.trio
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        OSError(errno.EIO, "broken"),
        ExceptionGroup("workers", [OSError(errno.ENODEV, "gone"), ValueError("a bug")]),
    ],
    ids=["exception", "other errno", "not only unmounted"],
)
async def test_pyfuse3_is_started_again(
    stage: Stage, mock_clock: MockClock, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    stage.pyfuse3.acts = [_raises(error), _raises(error)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        await stage.pyfuse3.serving.wait()
        assert not stage.ended
        signal.raise_signal(signal.SIGTERM)
    assert stage.pyfuse3.mains == 3
    assert _loud(caplog) == ["pyfuse3 gave up; starting it again"] * 2


@pytest.mark.trio
async def test_an_error_that_always_comes_back_ends_the_mount(
    stage: Stage, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    # One error each: an exception that is raised again and again grows a traceback of that length.
    stage.pyfuse3.acts = [_raises(RuntimeError("broken")) for _ in range(session._RESTARTS + 1)]
    await stage.run()
    assert stage.pyfuse3.mains == session._RESTARTS
    assert _loud(caplog)[-1] == f"pyfuse3 gave up {session._RESTARTS} times; the mount ends"


# -- the first exchange ------------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_pyfuse3_goes_on_after_the_exchange(
    stage: Stage, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It returns once, because the descriptor that it waits for was exchanged."""
    negotiation = stage.negotiation = FakeNegotiation(done=False)

    async def exchanged() -> None:
        negotiation.finish.set()
        await wait_all_tasks_blocked()

    stage.pyfuse3.acts = [exchanged]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        await stage.pyfuse3.serving.wait()
        assert (stage.pyfuse3.mains, stage.ended) == (2, False)
        signal.raise_signal(signal.SIGTERM)
    assert not _loud(caplog)


@pytest.mark.trio
@pytest.mark.parametrize(("code", "complaint"), [(errno.ENODEV, False), (errno.EIO, True)])
async def test_an_exchange_that_fails(
    stage: Stage, mock_clock: MockClock, caplog: pytest.LogCaptureFixture, code: int, complaint: bool
) -> None:
    """It ends the mount; unmounted before FUSE_INIT was answered is no error."""
    stage.negotiation = FakeNegotiation(done=False)
    stage.negotiation.error = OSError(code, os.strerror(code))
    stage.negotiation.finish.set()
    await stage.run()
    assert stage.pyfuse3.mains <= 1
    assert bool(_loud(caplog)) == complaint


@pytest.mark.trio
async def test_a_signal_before_the_exchange(
    stage: Stage, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """pyfuse3 returns because it is told to, not because of the exchange: it is not started again."""
    stage.negotiation = FakeNegotiation(done=False)
    stage.mount_point.error = OSError(errno.EPERM, "not permitted")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        await stage.pyfuse3.serving.wait()
        signal.raise_signal(signal.SIGTERM)
    assert stage.pyfuse3.mains == 1
    assert _loud(caplog) == ["cannot unmount '/merged': not permitted"]


REQUEST, REPLY = b"request" * 10, b"reply" * 10
"""Too short to have flags (test_negotiation.py has those): they pass as they are."""


@pytest.mark.trio
async def test_the_exchange_of_descriptors(
    stage: Stage, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The first request goes through a pair of sockets; the next comes from the device, under the same number."""
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    identity = os.fstat(device.fileno())
    number = device.detach()
    negotiation = stage.negotiation = Negotiation(number)
    served = negotiation.served
    got: list[bytes] = []
    woken = trio.Event()

    async def first() -> None:
        await trio.lowlevel.wait_readable(served)
        got.append(os.read(served, 100))
        os.write(served, REPLY)
        try:
            await trio.lowlevel.wait_readable(served)
        except trio.ClosedResourceError:
            woken.set()

    async def second() -> None:
        await trio.lowlevel.wait_readable(served)
        got.append(os.read(served, 100))
        raise OSError(errno.ENODEV, "unmounted")

    stage.pyfuse3.acts = [first, second]
    try:
        with kernel:
            kernel.send(REQUEST)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage.run)
                await woken.wait()
                assert kernel.recv(100) == REPLY
                assert os.path.samestat(os.fstat(served), identity)
                assert not os.get_inheritable(served)
                with pytest.raises(OSError):
                    os.fstat(number)
                kernel.send(b"next")
    finally:
        os.close(served)
    assert got == [REQUEST, b"next"]
    assert negotiation.done
    assert not _loud(caplog)


# -- serve -------------------------------------------------------------------------------------------------------------


class FakeRequests:
    """Learns which descriptor the requests come from."""

    device = -1
    union = SimpleNamespace(settings=Settings())
    own_root = False
    callers = None
    busiest = Busiest()
    ahead = None


@pytest.mark.parametrize("allow_root", [False, True])
@pytest.mark.parametrize("works", [True, False])
def test_serve(stage: Stage, allow_root: bool, works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyfuse3 gets our end of the exchange, and is closed without unmounting, after a bug as well."""
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(session, "device", None)
    requests: Any = FakeRequests()
    stage.pyfuse3.acts = [_raises(OSError(errno.ENODEV, "unmounted") if works else SystemExit("a bug"))]
    ready: list[int] = []
    with kernel, device:
        point = MountPoint(device.fileno(), "/merged", None, posix_acl=False)
        try:
            session.serve(requests, point, on_ready=lambda: ready.append(1), allow_root=allow_root)
        except* SystemExit:
            assert not works
        os.close(requests.device)
    assert isinstance(stage.pyfuse3.given[0], Operations)
    assert stage.pyfuse3.given[1:] == [f"/dev/fd/{requests.device}", {"allow_root"} if allow_root else set()]
    assert stage.pyfuse3.closed == [False]
    assert ready == [1]
