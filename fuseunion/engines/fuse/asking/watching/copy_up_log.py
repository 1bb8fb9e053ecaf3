"""The last copy-ups of a mount: what, when, how long, and for whom.

A bounded number is kept. Who follows them remembers a number and asks for what came after it, so that a slow reader
holds nothing up and costs nothing: what it does not take in time is gone, and it is told how many those were.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import trio

from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.engines.fuse.asking.watching.causes import CAUSE, Cause
from fuseunion.linux.proc.programs import Program, program

KEPT = 1000

_SAME = 1_000_000
"""Nanoseconds in which no thread starts another program that changes a file: execve(2) takes longer."""


Begun: TypeAlias = tuple[int, Cause, Program]
"""A copy-up that has begun: CLOCK_MONOTONIC in nanoseconds, and for whom it is."""


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
        # The fields of each, since few of them are ever asked for.
        self._kept: deque[tuple[int, float, int, bytes, int, float, Cause, Program]] = deque(maxlen=KEPT)
        self._more = trio.Event()
        self._followers = 0
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
        return clock, cause, asking

    def add(self, file: File, size: int, begun: Begun) -> None:
        """It was made."""
        clock, cause, program = begun
        seconds = (time.monotonic_ns() - clock) / 1e9
        self.count += 1
        self._kept.append((self.count, time.time(), file.ino, path_of(file), size, seconds, cause, program))
        if self._followers:
            self._more.set()
            self._more = trio.Event()

    def since(self, number: int) -> tuple[int, list[CopyUp]]:
        """How many are gone that came after a number, and those that are kept."""
        found = [CopyUp._make(entry) for entry in self._kept if entry[0] > number]
        return self.count - number - len(found), found

    async def more(self, number: int) -> None:
        """Return when there were more than this number."""
        self._followers += 1
        try:
            while self.count <= number:
                await self._more.wait()
        finally:
            self._followers -= 1

    def last_of(self, ino: int) -> CopyUp | None:
        """The last one of a file that is kept."""
        return next((made for made in map(CopyUp._make, reversed(self._kept)) if made.ino == ino), None)


def path_of(inode: Inode) -> bytes:
    """A name of an inode, from the root of the mount; empty where it has none, and for the root."""
    above: tuple[Inode, bytes] | None = inode.only_name if isinstance(inode, File) else None
    above = above or next(iter(inode.names()), None)
    parts: list[bytes] = []
    while above is not None:
        inode, name = above
        parts.append(name)
        if isinstance(inode, Directory):  # nearly always, and an iterator for each costs more than all else here
            above = None if inode.parent is None or inode.removed else (inode.parent, inode.name)
        else:
            above = next(iter(inode.names()), None)
    parts.reverse()
    return b"/".join(parts)
