"""The worker threads of a mount: who waits for a disk leaves the loop to the others, and leaves them threads as well.

Each kind of work has a number of threads of its own. However many copy-ups are asked for at once, a few are made at a
time, and a read that has to wait for a disk, or an fsync, never waits behind them.

Where no thread can be made (RLIMIT_NPROC, the pids controller of a control group, memory), the work is done in the
loop: everybody waits for it, and nobody gets an error.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import trio

_log = logging.getLogger("fuseunion.fuse")

_T = TypeVar("_T")
_P = ParamSpec("_P")

COPIES = 4
"""Copy-ups at a time: more would not be sooner done, only all of them later."""

_READS = 32
_SYNCS = 16
_ASKED_AHEAD = 32


class Workers:
    """The threads of one mount, and what else keeps a request from being answered at once.

    Attributes:
        elsewhere: how many requests are answered by threads that are none of these; set by the adapter.
        syncing: has files put on disk by a thread that is none of these; None where there are none. Set by the adapter.
    """

    __slots__ = (
        *("_asked", "_being_put", "_copies", "_long_operations", "_reads", "_refused", "_syncs"),
        *("elsewhere", "syncing"),
    )

    def __init__(self) -> None:
        self._copies = trio.CapacityLimiter(COPIES)
        self._reads = trio.CapacityLimiter(_READS)
        self._syncs = trio.CapacityLimiter(_SYNCS)
        self._asked = trio.CapacityLimiter(_ASKED_AHEAD)
        self._long_operations = 0
        self._being_put = 0  # on disk, by threads that are none of these
        self._refused = False
        self.elsewhere: Callable[[], int] = lambda: 0
        self.syncing: Callable[[tuple[int, ...]], Awaitable[None]] | None = None

    @property
    def at_rest(self) -> bool:
        """True when no thread works, nobody waits for one, and no operation is in the middle of several steps.

        What is asked ahead does not count: that request has not begun.
        """
        limiters = (self._copies, self._reads, self._syncs)
        busy = self._long_operations or self._being_put or any(limiter.borrowed_tokens for limiter in limiters)
        return not busy and not self.elsewhere()

    @property
    def in_long_operation(self) -> bool:
        """True while an operation is in the middle of several steps."""
        return bool(self._long_operations)

    @contextmanager
    def long_operation(self) -> Iterator[None]:
        """The block lets other requests go on in between, and is not over before it ends."""
        self._long_operations += 1
        try:
            yield
        finally:
            self._long_operations -= 1

    async def copy(self, move: Callable[[], None]) -> None:
        """Move the data of a copy-up. Raises what `move` raises."""
        await self._run(self._copies, move)

    async def put_on_disk(self, fds: tuple[int, ...]) -> None:
        """Put copies on disk. Raises what fsync(2) does, of the first that fails."""
        if self.syncing is None:
            await self._run(self._copies, _put_on_disk, fds)
            return
        self._being_put += 1
        try:
            await self.syncing(fds)
        finally:
            self._being_put -= 1

    async def read(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Make a call that reads. Raises what it raises."""
        return await self._run(self._reads, call, *args, **kwargs)

    async def sync(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Make a call that writes something out. Raises what it raises."""
        return await self._run(self._syncs, call, *args, **kwargs)

    async def ask(self, call: Callable[[], _T]) -> _T:
        """Make a call that asks a filesystem which may not answer. Nobody waits for its end who is cancelled."""
        return await self._run(self._asked, call)

    @staticmethod
    def close(fd: int) -> None:
        """Close a descriptor of such a filesystem, some time."""
        try:
            trio.lowlevel.start_thread_soon(lambda: os.close(fd), _ignore)
        except RuntimeError:  # as in `_run`
            os.close(fd)

    async def _run(
        self, limiter: trio.CapacityLimiter, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        begun = False

        def work() -> _T:
            nonlocal begun
            begun = True
            return call(*args, **kwargs)

        try:
            return await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=limiter is self._asked)
        except (RuntimeError, MemoryError) as error:
            # threading.Thread.start: RuntimeError, "can't start new thread".
            if begun:
                raise
            if not self._refused:
                _log.warning("no thread can be made (%s): other requests wait for each disk access", error)
            self._refused = True
        return call(*args, **kwargs)


def _put_on_disk(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.fsync(fd)


def _ignore(_outcome: object) -> None:
    """Nobody waits for it."""
