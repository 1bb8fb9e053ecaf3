"""What the daemon said at two moments, and what was done in between."""

from __future__ import annotations

from typing import NamedTuple

from fuseunion.engines.status import Latency
from fuseunion.linux.runtime import frames
from fuseunion.linux.runtime.frames import Record


class Figures(NamedTuple):
    """The numbers of one moment.

    Attributes:
        when: CLOCK_MONOTONIC in seconds.
        requests, alone, latencies: as of Status.
        busy: paths, and how often they were asked for since the message before.
        copy_ups: records of those since the message before.
    """

    when: float
    requests: dict[str, int]
    alone: dict[str, int]
    latencies: dict[str, Latency]
    numbers: dict[str, int]
    busy: list[tuple[str, int]]
    copy_ups: list[Record]


def figures(records: list[Record], when: float) -> Figures:
    """What one message says."""
    now = records[0] if records else {}
    return Figures(
        when,
        _numbers(now, "request."),
        _numbers(now, "alone."),
        {
            name.removeprefix("duration."): _latency(values[0])
            for name, values in now.items()
            if name.startswith("duration.")
        },
        {name: int(values[0]) for name, values in now.items() if values[0].isdecimal() and "." not in name},
        [(frames.first(record, "path"), int(record["busy"][0])) for record in records[1:] if "busy" in record],
        [record for record in records[1:] if "number" in record],
    )


def _numbers(record: Record, prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): int(values[0]) for name, values in record.items() if name.startswith(prefix)}


def _latency(text: str) -> Latency:
    nanoseconds, *counts = map(int, text.split())
    return Latency(nanoseconds / 1e9, tuple(counts))


class Operation(NamedTuple):
    """What was done of one kind of request between two moments.

    Attributes:
        rate: in a second.
        latency: of the answers; None where there was none.
        alone: which part of them needed no Python.
    """

    name: str
    rate: float
    latency: Latency | None
    alone: float


def operations(before: Figures, now: Figures) -> list[Operation]:
    """Those of which there was at least one."""
    seconds = max(now.when - before.when, 1e-3)
    found = []
    for name, count in now.requests.items():
        more = count - before.requests.get(name, 0)
        if more <= 0:
            continue
        latency = now.latencies.get(name)
        if latency is not None and name in before.latencies:
            latency = latency.since(before.latencies[name])
        alone = now.alone.get(name, 0) - before.alone.get(name, 0)
        found.append(Operation(name, more / seconds, latency if latency and latency.answers else None, alone / more))
    return found
