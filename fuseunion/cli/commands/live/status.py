"""`fuseunion status [MERGED]`: what is mounted, by any engine, and how it is doing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping

from fuseunion.cli.commands.live.words import seconds, write_line
from fuseunion.cli.parser import CommandParser
from fuseunion.engines import registry
from fuseunion.engines.status import Latency, State, Status
from fuseunion.errors import ExitCode, UserError, one_line

HELP = """\
Usage: fuseunion status [--json | --metrics] [MERGED]

Says what you have mounted, in any namespace and by any engine, and how it is doing: its layers, options and daemon, how
many requests and copy-ups there were and how long the answers took, which errors were answered, what the daemon uses.
Dead mounts and unfinished ranches are among them, each with its remedy. Root sees the mounts of others too, as far as
they are seen from here.

Exits with 1 when one of them cannot be used.

Options:
  --json       the same for programs
  --metrics    the same for Prometheus, in its text format
  -h, --help   print this help

Examples:
  fuseunion status
  fuseunion status --json ~/merged
"""

_TROUBLE = ("EIO", "ENOSPC", "EDQUOT", "ESTALE", "EMFILE", "ENFILE", "ENOMEM", "EROFS")
"""Errors that say something of the mount; the others are answers to what was asked."""

_SHOWN_REQUESTS = 5
_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


def main(arguments: list[str]) -> int:
    """Say how mounts are doing.

    Returns:
        FAILURE when one of those that are said cannot be used, else OK.
    Raises:
        UserError: USAGE; LAYERS when nothing of ours is at MERGED.
    """
    parser = CommandParser("status", HELP)
    parser.flag("--json")
    parser.flag("--metrics")
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if asked.json and asked.metrics:
        raise UserError("--json and --metrics cannot be given together")
    if len(asked.operands) > 1:
        raise UserError("give one mounted directory, or none for all: fuseunion status MERGED")
    found = _at(asked.operands[0]) if asked.operands else _every(None)
    if asked.metrics:
        from fuseunion.cli.commands.live import metrics

        sys.stdout.write(metrics.text(found))
    elif asked.json:
        json.dump({"mounts": [_as_json(status) for status in found]}, sys.stdout, indent=2)
        print()
    elif not found:
        print("nothing is mounted")
    else:
        for status in found:
            _print(status)
    return ExitCode.OK if all(status.state is State.LIVE for status in found) else ExitCode.FAILURE


def _every(path: str | None) -> list[Status]:
    found = [status for engine in registry.every() for status in engine.statuses(path)]
    return sorted(found, key=lambda status: (status.merged, status.namespace or 0))


def _at(given: str) -> list[Status]:
    """What is at a path.

    Raises:
        UserError: LAYERS, when it is nothing of ours.
    """
    # First without a look at what is there: nobody may answer.
    parent, name = os.path.split(os.path.abspath(given))
    path = os.path.join(os.path.realpath(parent), name)
    every = _every(None)
    found = [status for status in every if status.merged == path]
    if not found:
        path = os.path.realpath(given)
        found = [status for status in _every(path) if status.merged == path]
    if not found:
        raise UserError(f"nothing of yours is mounted at '{given}'; see all with: fuseunion status", ExitCode.LAYERS)
    # The one that is seen here is meant, where there is one.
    return [status for status in found if status.namespace is None] or found


def _as_json(status: Status) -> dict[str, object]:
    return {
        **status._asdict(),
        "engine": status.engine.value,
        "state": status.state.value,
        "requests": dict(status.requests),
        "errors": dict(status.errors),
        "alone": dict(status.alone),
        "latencies": {name: _latency_as_json(latency) for name, latency in status.latencies.items()},
        "remedy": status.remedy or None,
    }


def _latency_as_json(latency: Latency) -> dict[str, object]:
    bounds = zip(latency.bounds(), latency.counts, strict=True)
    return {
        "count": latency.answers,
        "seconds": latency.seconds,
        "at_most": {f"{bound:g}": count for bound, count in bounds if count},
    }


def _print(status: Status) -> None:
    age = f" for {_duration(status.age)}" if status.age is not None else ""
    write_line(f"{one_line(status.merged)}: {status.state.value}{age}, {status.engine.value} engine")
    for label, text in _rows(status):
        write_line(f"    {label:<10}{text}")


def _rows(status: Status) -> Iterator[tuple[str, str]]:
    if status.remedy:
        yield "remedy", one_line(status.remedy)
    if status.namespace is not None:
        yield "seen by", f"process {status.namespace}, in another mount namespace"
    for lower in status.lowers:
        yield "lower", one_line(lower)
    if status.upper is not None:
        yield "upper", one_line(status.upper)
    if status.work is not None:
        yield "work", one_line(status.work)
    for image in status.images:
        yield "image", one_line(image)
    if status.options:
        yield "options", one_line(", ".join(status.options))
    if status.pid is not None:
        yield "daemon", f"process {status.pid}{_usage(status)}"
    if status.reading is not None:
        yield "reads", "/dev/fuse by the C extension" if status.reading == "extension" else "/dev/fuse by pyfuse3"
    if status.inodes is not None:
        opened = f", {status.open_files} open" if status.open_files is not None else ""
        yield "inodes", f"{status.inodes} known{opened}"
    if status.reading is not None:
        yield "requests", f"{sum(status.requests.values())}{_most(status.requests)}"
        yield from _latencies(status)
        yield "copy-ups", str(status.copy_ups or 0)
    trouble = {name: count for name, count in status.errors.items() if name in _TROUBLE}
    if trouble:
        yield "errors", ", ".join(f"{count} {name}" for name, count in trouble.items())


def _usage(status: Status) -> str:
    text = f", {status.memory / 2**20:.1f} MiB of memory" if status.memory is not None else ""
    return text + (f", {status.descriptors} descriptors" if status.descriptors is not None else "")


def _most(requests: Mapping[str, int]) -> str:
    """The most frequent kinds."""
    kinds = _most_frequent(requests)
    return f" ({', '.join(f'{requests[name]} {name}' for name in kinds)})" if kinds else ""


def _most_frequent(requests: Mapping[str, int]) -> list[str]:
    return sorted(requests, key=lambda name: (-requests[name], name))[:_SHOWN_REQUESTS]


def _latencies(status: Status) -> Iterator[tuple[str, str]]:
    kinds = {name: status.latencies[name] for name in _most_frequent(status.requests) if name in status.latencies}
    shown = [f"{name} {seconds(latency.seconds / latency.answers)}" for name, latency in kinds.items()]
    if shown:
        yield "latency", f"{', '.join(shown)} on average"
    if status.reading == "extension" and (answered := sum(status.requests.values())):
        part = sum(status.alone.values()) / answered
        yield (
            "cached",
            f"{part:.0%} of the requests answered without Python; what the kernel answers itself is not known",
        )


def _duration(seconds: int) -> str:
    for unit, size in _UNITS:
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "0 seconds"
