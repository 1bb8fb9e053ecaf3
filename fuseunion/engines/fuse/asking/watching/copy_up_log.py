"""The last copy-ups of a mount: what, when, how long, and for whom.

A bounded number is kept. Who follows them remembers a number and asks for what came after it, so that a slow reader
holds nothing up and costs nothing: what it does not take in time is gone, and it is told how many those were.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import trio

from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.engines.fuse.asking.watching.causes import CAUSE, Cause
from fuseunion.linux.proc.programs import Program, program

KEPT = 1000

_SAME = 1_000_000
"""Nanoseconds in which no thread starts another program that changes a file: execve(2) takes longer."""


class Begun(NamedTuple):
    """A copy-up that has begun.

    Attributes:
        clock: CLOCK_MONOTONIC in nanoseconds.
    """

    clock: int
    cause: Cause
    program: Program


class CopyUp(NamedTuple):
    """A copy-up that was made.

    Attributes:
        number: 1 for the first of the mount.
        when: seconds since the epoch, at its end.
        ino: of the file.
        path: a name of the file then, from the root of the mount; empty where it had none any more.
        size: bytes that were copied.
        seconds: how long it took.
    """

    number: int
    when: float
    ino: int
    path: bytes
    size: int
    seconds: float
    cause: Cause
    program: Program


class CopyUpLog:
    """The log of one mount.

    Attributes:
        count: how many copy-ups there were.
        cause: what the request that is dealt with at once is; set by the adapter.
    """

    def __init__(self) -> None:
        self._kept: deque[CopyUp] = deque(maxlen=KEPT)
        self._more = trio.Event()
        self.count = 0
        self._asking = (0, 0, Program("", ""))  # a thread, when it was looked at, what it ran
        self.cause: Callable[[], Cause] = CAUSE.get

    def begin(self) -> Begun:
        """A copy-up begins: who asked for it waits, and can be looked at."""
        cause = CAUSE.get()
        if not cause.request:
            cause = self.cause()
        clock = time.monotonic_ns()
        known, since, asking = self._asking
        if known != cause.pid or clock - since > _SAME:
            asking = program(cause.pid)
            self._asking = (cause.pid, clock, asking)
        return Begun(clock, cause, asking)

    def add(self, file: File, size: int, begun: Begun) -> None:
        """It was made."""
        seconds = (time.monotonic_ns() - begun.clock) / 1e9
        self.count += 1
        made = CopyUp(self.count, time.time(), file.ino, path_of(file), size, seconds, begun.cause, begun.program)
        self._kept.append(made)
        if self._more.statistics().tasks_waiting:
            self._more.set()
            self._more = trio.Event()

    def since(self, number: int) -> tuple[int, list[CopyUp]]:
        """How many are gone that came after a number, and those that are kept."""
        found = [entry for entry in self._kept if entry.number > number]
        return self.count - number - len(found), found

    async def more(self, number: int) -> None:
        """Return when there were more than this number."""
        while self.count <= number:
            await self._more.wait()

    def last_of(self, ino: int) -> CopyUp | None:
        """The last one of a file that is kept."""
        return next((entry for entry in reversed(self._kept) if entry.ino == ino), None)


def path_of(inode: Inode) -> bytes:
    """A name of an inode, from the root of the mount; empty where it has none, and for the root."""
    parts: list[bytes] = []
    while True:
        above = next(iter(inode.names()), None)
        if above is None:
            return b"/".join(reversed(parts))
        inode, name = above
        parts.append(name)
