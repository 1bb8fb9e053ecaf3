"""How mounts are doing, in the text format of Prometheus
(https://prometheus.io/docs/instrumenting/exposition_formats/).

The names are a promise (docs/live.md): what is graphed by one stays under it. Every sample says which mount it is of,
by the labels `merged` and `pid`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from fuseunion.engines.status import State, Status

Sample = tuple[str, dict[str, str], float]
"""The end of its name, labels besides those of the mount, value."""


class Metric(NamedTuple):
    """One family of samples.

    Attributes:
        name: without the prefix that all have.
        kind: as the format calls it.
        says: what it counts.
        samples: those of one mount.
    """

    name: str
    kind: str
    says: str
    samples: Callable[[Status], Iterable[Sample]]


def _single(value: Callable[[Status], float | None]) -> Callable[[Status], Iterator[Sample]]:
    def samples(status: Status) -> Iterator[Sample]:
        found = value(status)
        if found is not None:
            yield "", {}, found

    return samples


def _about(status: Status) -> Iterator[Sample]:
    labels = {"engine": status.engine.value, "state": status.state.value, "upper": status.upper or ""}
    yield "", {**labels, "reading": status.reading or ""}, 1


def _requests(status: Status) -> Iterator[Sample]:
    return (("", {"operation": name}, count) for name, count in sorted(status.requests.items()))


def _alone(status: Status) -> Iterator[Sample]:
    if status.reading is not None:
        for name in sorted(status.requests):
            yield "", {"operation": name}, status.alone.get(name, 0)


def _errors(status: Status) -> Iterator[Sample]:
    return (("", {"error": name}, count) for name, count in sorted(status.errors.items()))


def _durations(status: Status) -> Iterator[Sample]:
    for name, latency in sorted(status.latencies.items()):
        operation, below = {"operation": name}, 0
        for bound, count in zip(latency.bounds(), latency.counts, strict=True):
            below += count
            yield "_bucket", {**operation, "le": _number(bound)}, below
        yield "_sum", operation, latency.seconds
        yield "_count", operation, latency.answers


METRICS = (
    Metric("mount_info", "gauge", "A mount, and what is so of it.", _about),
    Metric("up", "gauge", "1 where the mount can be used.", _single(lambda status: status.state is State.LIVE)),
    Metric("age_seconds", "gauge", "How long it has been mounted.", _single(lambda status: status.age)),
    Metric("memory_bytes", "gauge", "Memory of the daemon.", _single(lambda status: status.memory)),
    Metric("descriptors", "gauge", "Descriptors that the daemon has open.", _single(lambda status: status.descriptors)),
    Metric("inodes", "gauge", "Inodes that the daemon knows.", _single(lambda status: status.inodes)),
    Metric("copy_ups_total", "counter", "Files that were copied up.", _single(lambda status: status.copy_ups)),
    Metric("requests_total", "counter", "Requests of the kernel.", _requests),
    Metric(
        "requests_answered_by_extension_total",
        "counter",
        "Requests that the extension answered without Python. What the kernel answered itself is not known.",
        _alone,
    ),
    Metric("errors_total", "counter", "Requests that were answered with an error.", _errors),
    Metric("request_duration_seconds", "histogram", "From reading a request to its answer.", _durations),
)


def text(statuses: Sequence[Status]) -> str:
    """All metrics of some mounts."""
    lines: list[str] = []
    for metric in METRICS:
        name = f"fuseunion_{metric.name}"
        lines += (f"# HELP {name} {metric.says}", f"# TYPE {name} {metric.kind}")
        for status in statuses:
            mount = {"merged": status.merged, "pid": str(status.pid or "")}
            for end, labels, value in metric.samples(status):
                shown = ",".join(f'{label}="{_escaped(said)}"' for label, said in {**mount, **labels}.items())
                lines.append(f"{name}{end}{{{shown}}} {_number(value)}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    # A path may hold what is no UTF-8.
    value = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf"
    return str(int(value)) if value == int(value) else f"{value:.9g}"
