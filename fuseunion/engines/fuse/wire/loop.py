"""The trio side of requests that are read directly.

pyfuse3 looks trio up in its own module, as its asyncio adapter shows (pyfuse3/asyncio.py). So its wait for /dev/fuse
can be ours: it serves requests, and returns only when one is for libfuse.

A wake-up costs more than most requests do. So before the loop sleeps it looks for another request for a few dozen
microseconds, giving way to whoever needs the core (sched_yield(2)); not where others do need it. And a wake-up of trio
costs more than one of the module. So as long as requests follow each other and nobody here waits for anything else, it
is the module that sleeps.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import pyfuse3
import trio

from fuseunion.engines.fuse.asking.watching.causes import CAUSE, UNKNOWN, Cause
from fuseunion.engines.fuse.asking.watching.counts import Counts, Durations, together
from fuseunion.engines.fuse.serving.waiting.ahead import Ahead, Question
from fuseunion.engines.fuse.serving.waiting.later import Later, ended
from fuseunion.engines.fuse.wire import layouts
from fuseunion.engines.fuse.wire.answers import Answers
from fuseunion.engines.fuse.wire.native.device import compares, device
from fuseunion.engines.fuse.wire.results import Answer, Final

log = logging.getLogger("fuseunion.fuse")
trace_log = logging.getLogger("fuseunion.trace")

T = TypeVar("T")

_AT_ONCE = 64
"""Requests between two turns of the other tasks."""

_TURNS = 3
"""Until everybody has had his who can go on: what happens while others have theirs comes in the next."""

_IDLE = 0.1
"""Seconds without a request, after which no descriptor of a file is kept any more."""

_SLEEP = 10_000_000
"""Nanoseconds without a request, after which trio waits for one: other tasks can have to wait for so long."""


class _Instead:
    """A module with some names that mean something else.

    Args:
        module: it has all the others, as attributes (pyfuse/lean_imports.py does not put all in its dictionary).
    """

    def __init__(self, module: ModuleType, **names: object) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


class WireLoop:
    """The loop of one mount, from here to the end of the process; comes before pyfuse3.init.

    Args:
        fd: the mounted /dev/fuse descriptor.
        patience: how long to look for another request before sleeping, in seconds.
        trace: log each request.
        wanted: flags of FUSE_INIT to ask for, besides those that this needs.

    Attributes:
        served: the descriptor.
        done: always: there is no exchange of descriptors.
    """

    def __init__(self, fd: int, answers: Answers, *, patience: float, trace: bool, wanted: int) -> None:
        self.served = fd
        self.done = True
        self._answers = answers
        self._patience = int(patience * 1e9)
        self._trace = trace
        self._wanted = wanted | layouts.HANDLE_KILLPRIV_V2 | layouts.CACHE_SYMLINKS | layouts.PARALLEL_DIROPS
        self._nursery: trio.Nursery | None = None
        self._unfinished = 0  # requests that are answered later
        self._syncing = 0  # how often somebody waits for a thread of the module
        self._runnable = 0  # tasks that need not wait any more, and have not gone on yet
        self._caller, self._caused = (0, 0), UNKNOWN  # of the last request that somebody asked about
        self._names = answers.names()
        answers.ahead.on_begin = self._attach
        answers.sync_with(self._sync)
        self._attach()

    def _attach(self) -> None:
        handlers = self._answers.handlers()
        ahead = self._answers.ahead
        if ahead.needed:
            handlers = {opcode: _asked_ahead(ahead, self._names[opcode], one) for opcode, one in handlers.items()}
        self._answers.watch_with(self._counts, self._cause)
        made: Callable[..., int] = self._answers.made
        if self._trace:
            handlers = {opcode: _traced(handler) for opcode, handler in handlers.items()}
            made = _traced(made)
        assert device is not None
        device.attach(
            self.served,
            handlers,
            self._answers.refusals(),
            self._later,
            self._failed,
            self._answers.changed,
            made,
            self._wanted,
            layouts.ATOMIC_O_TRUNC,
            *self._answers.valid,
            compares,
        )
        lowlevel = _Instead(trio.lowlevel, wait_readable=self._wait_readable)
        vars(pyfuse3)["trio"] = _Instead(trio, lowlevel=lowlevel)

    def _cause(self) -> Cause:
        """The request that is being dealt with; for what does not wait."""
        assert device is not None
        caller = device.caller()
        if caller != self._caller:
            self._caller = caller
            self._caused = Cause(self._names.get(caller[0], ""), caller[1])
        return self._caused

    def _counts(self) -> Counts:
        """What Requests.counts says."""
        assert device is not None
        by_opcode, errors, alone_by_opcode = device.counts()
        requests: dict[str, int] = {}
        alone: dict[str, int] = {}
        durations: dict[str, Durations] = {}
        for opcode, count in by_opcode.items():
            name = self._names.get(opcode)
            if name is None:
                continue  # it belongs to the session: FUSE_INIT, FUSE_INTERRUPT
            requests[name] = requests.get(name, 0) + count
            if opcode in alone_by_opcode:
                alone[name] = alone_by_opcode[opcode]
            of_opcode = device.durations(opcode)
            if any(of_opcode[1]):
                durations[name] = together(durations[name], of_opcode) if name in durations else of_opcode
        return Counts(requests, errors, alone, durations)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer requests that take longer, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            try:
                while True:
                    await self._go_on()
            finally:
                with trio.CancelScope(shield=True):
                    while self._syncing:
                        await self._go_on()

    async def _go_on(self) -> None:
        """Let those go on who wait for a thread of the module, where `serve` does not."""
        assert device is not None
        await trio.lowlevel.wait_readable(device.told())
        device.tell()

    async def _sync(self, fds: tuple[int, ...]) -> None:
        """fsync(2) of some files, by a thread of the module.

        Raises:
            OSError: what it answers for the first that fails.
        """
        assert device is not None
        await trio.lowlevel.checkpoint_if_cancelled()
        task, code = trio.lowlevel.current_task(), 0

        def told(answer: int) -> None:
            nonlocal code
            code = answer
            self._syncing -= 1
            self._runnable += 1
            trio.lowlevel.reschedule(task)

        device.sync(fds, told)
        self._syncing += 1
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        self._runnable -= 1
        if code:
            raise OSError(code, os.strerror(code))

    def close(self) -> None:
        """Answer no request any more, and keep no file open and no directory.

        Comes before the descriptor is closed, of which threads know the number. The filesystem of a layer may wait for
        the files before it ends.
        """
        assert device is not None
        device.finish()
        self._answers.close_files()

    async def _wait_readable(self, fd: int) -> None:
        """Serve requests until one has to be read by libfuse."""
        assert device is not None
        serve, most, patience = device.serve, _AT_ONCE, self._patience
        while True:
            for _ in range(_TURNS):  # before it is looked for more
                if not self._runnable:
                    break
                await trio.lowlevel.checkpoint()
            outcome = serve(most, patience, 0 if self._unfinished > self._syncing else _SLEEP)
            if outcome == device.IDLE:
                await self._wait_idly(fd)
            elif outcome == device.TURN:
                await trio.lowlevel.checkpoint()
            else:
                return

    async def _wait_idly(self, fd: int) -> None:
        if self._answers.holds_files:
            with trio.move_on_after(_IDLE):
                await trio.lowlevel.wait_readable(fd)
                return
            self._answers.close_files()
        await trio.lowlevel.wait_readable(fd)

    def _later(self, opcode: int, unique: int, room: int, since: int, result: Later[Final]) -> None:
        assert self._nursery is not None
        self._unfinished += 1
        self._runnable += 1
        self._nursery.start_soon(self._finish, opcode, unique, room, since, result, self._cause())

    async def _finish(
        self, opcode: int, unique: int, room: int, since: int, result: Later[Final], cause: Cause
    ) -> None:
        answer: Final
        self._runnable -= 1
        CAUSE.set(cause)
        try:
            answer = await result
        except Exception as error:  # noqa: BLE001 - the boundary of a handler
            answer = self._failed(opcode, error)
        finally:
            self._unfinished -= 1
        assert device is not None
        device.reply(opcode, unique, room, since, answer)

    def _failed(self, opcode: int, error: BaseException) -> int:
        """The error number for what a handler raised."""
        if isinstance(error, OSError):
            code = error.errno or errno.EIO
            if self._trace:
                trace_log.debug("%d: %s", opcode, error)
            # ENOSYS would switch the whole operation off in the kernel.
            return errno.EOPNOTSUPP if code == errno.ENOSYS else code
        log.error("unexpected error in a request of type %d; answered EIO", opcode, exc_info=error)
        return errno.EIO


def _asked_ahead(ahead: Ahead, kind: str, handler: Callable[..., Answer | None]) -> Callable[..., Answer | None]:
    """A handler that is called when the layers that may not answer have answered."""

    def asked_ahead(*args: Any) -> Answer | None:
        question = ahead.question(kind, args)
        return handler(*args) if question is None else _answered(ahead, question, handler, args)

    return functools.update_wrapper(asked_ahead, handler)


async def _answered(
    ahead: Ahead, question: Question, handler: Callable[..., Answer | None], args: tuple[Any, ...]
) -> Final:
    await ahead.ask(question)
    answer = handler(*args)
    assert answer is not None, "it is no FORGET"
    return await ended(answer)


def _traced(handler: Callable[..., T]) -> Callable[..., T]:
    name = handler.__name__.removeprefix("_")

    def traced(*args: Any) -> T:
        if trace_log.isEnabledFor(logging.DEBUG):
            trace_log.debug("%s%r", name, args)
        return handler(*args)

    return traced
