"""How one union is doing, whichever engine shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from fuseunion.mounting.options import EngineChoice


class State(Enum):
    """Whether a union can be used."""

    LIVE = "live"
    DEAD = "dead"
    """Nobody serves it."""
    SILENT = "silent"
    """Its daemon is there and does not answer."""
    UNMOUNTED = "unmounted"
    """It is mounted nowhere any more, and its daemon has not ended."""
    UNFINISHED = "unfinished"
    """A killed command left it half made, or half taken down."""
    UNKNOWN = "unknown"
    """It may not be asked, or what is known of it cannot be read."""


class Latency(NamedTuple):
    """How long the answers to one kind of request took, from when it is read to when its answer is given.

    Attributes:
        seconds: all together.
        counts: how many took at most 1, 2, 4, ... microseconds, and longer than the one before; the last is of all
            others.
    """

    seconds: float
    counts: tuple[int, ...]

    @property
    def answers(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def bounds(self) -> tuple[float, ...]:
        """What each of `counts` took at most, in seconds; the last is infinite."""
        return (*(2**place / 1e6 for place in range(len(self.counts) - 1)), math.inf)

    def quantile(self, part: float) -> float:
        """What this part of the answers took at most, in seconds: a bound of one of `counts`."""
        left = part * self.answers
        for bound, count in zip(self.bounds(), self.counts, strict=True):
            left -= count
            if left <= 0:
                return bound
        return math.inf

    def since(self, before: Latency) -> Latency:
        """Of what came after another time."""
        counts = tuple(now - then for now, then in zip(self.counts, before.counts, strict=True))
        return Latency(self.seconds - before.seconds, counts)


_NOTHING: Mapping[str, int] = MappingProxyType({})
_NO_LATENCY: Mapping[str, Latency] = MappingProxyType({})


class Status(NamedTuple):
    """How one union is doing. What is not known is None, or empty.

    Attributes:
        engine: who shows it.
        merged: where, as the process `namespace` sees it.
        namespace: a process of the mount namespace in which it is mounted; None for this one.
        lowers: topmost first.
        work: the work directory.
        images: those among the layers, each with who shows it.
        options: those that are not the usual ones, in the words of `-o` where there are such.
        pid: the daemon.
        age: seconds.
        memory: bytes.
        descriptors: that the daemon has open.
        inodes: that it knows, because the kernel does.
        open_files: files and directories that are open in it.
        copy_ups: files that were copied up.
        reading: who reads /dev/fuse: `extension`, the module in C, or `pyfuse3` alone.
        requests: how many there were, by their names.
        errors: how many were answered with an error, by its name.
        alone: how many of the requests the extension answered without Python, by their names.
        latencies: of the answers, by the names of the requests.
        remedy: what helps, where it is not live.
    """

    engine: EngineChoice
    merged: str
    state: State
    namespace: int | None = None
    lowers: tuple[str, ...] = ()
    upper: str | None = None
    work: str | None = None
    images: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    pid: int | None = None
    age: int | None = None
    memory: int | None = None
    descriptors: int | None = None
    inodes: int | None = None
    open_files: int | None = None
    copy_ups: int | None = None
    reading: str | None = None
    requests: Mapping[str, int] = _NOTHING
    errors: Mapping[str, int] = _NOTHING
    alone: Mapping[str, int] = _NOTHING
    latencies: Mapping[str, Latency] = _NO_LATENCY
    remedy: str = ""
