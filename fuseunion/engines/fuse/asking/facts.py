"""What a daemon says of its mount: `NAME=VALUE`, each ended by a zero byte (linux/runtime/answers.py).

    merged upper work reading age    once; upper and work only where there are any; age in seconds
    lower option image               once for each, in their order; of an image who shows it
    inodes open copy_ups             numbers of now; `open` where files are opened (pyfuse3 alone)
    request.NAME error.NUMBER        numbers since the mount was made
    alone.NAME                       how many of the requests the extension answered without Python
    duration.NAME                    of the answers: nanoseconds together, and the number of each place (counts.py)

What hardly changes is written down once. The rest is read without waiting and without looking at any file.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from enum import Enum

from fuseunion.engines.fuse.asking.watching.counts import Durations
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.mounting.options import Options
from fuseunion.mounting.prepared import Prepared

_MOST_LOWERS = 1 << 16
"""Bytes of their paths: as much as a socket takes without waiting, with the rest (net.core.wmem_default)."""

_ELSEWHERE = ("target", "source", "lowers", "upper", "work", "form", "engine", "ranch", "ignored", "mine")
"""Options that are said in other words, or not those of a mount through FUSE."""


class Facts:
    """What is said of one mount.

    Args:
        requests: those of the mount.
        prepared: its directories.
        options: how it was asked for.
        reading: who reads /dev/fuse.
    """

    def __init__(self, requests: Requests, prepared: Prepared, options: Options, reading: str) -> None:
        self._requests = requests
        self._since = time.monotonic()
        fields = [("merged", prepared.target), ("reading", reading)]
        if prepared.upper is not None and not options.ephemeral:
            fields.append(("upper", prepared.upper.label))
            if prepared.work is not None:
                fields.append(("work", prepared.work.label))
        fields += (("option", word) for word in words(options))
        fields += (("image", f"{image.path}: {image.by}") for image in prepared.images)
        self._fields = fields
        self._prepared = prepared
        self._lasting = b""
        self.lowers_changed()

    def lowers_changed(self) -> None:
        """What does not change is written down anew, for once."""
        fields = list(self._fields)
        room = _MOST_LOWERS
        for lower in self._prepared.lowers:
            room -= len(lower.label)
            if room < 0:
                fields.append(("lower", "..."))
                break
            fields.append(("lower", lower.label))
        self._lasting = _written(fields)

    def __call__(self) -> bytes:
        """The whole answer."""
        return self._lasting + _written(self.now())

    def now(self) -> list[tuple[str, str]]:
        """What changes."""
        requests = self._requests
        counts = requests.counts()
        now = {
            "age": int(time.monotonic() - self._since),
            "inodes": requests.union.known,
            "open": requests.count_open(),
            "copy_ups": requests.copy_ups.log.count,
            **{f"request.{name}": count for name, count in counts.requests.items()},
            **{f"error.{number}": count for number, count in counts.errors.items()},
            **{f"alone.{name}": count for name, count in counts.alone.items()},
            **{f"duration.{name}": _places(durations) for name, durations in counts.durations.items()},
        }
        return [(name, str(number)) for name, number in now.items()]


def words(options: Options) -> list[str]:
    """The options that are not as they would be without being given, in the words of `-o` where those are the same."""
    given = []
    for name, usual in Options._field_defaults.items():
        value = getattr(options, name)
        if value == usual or name in _ELSEWHERE:
            continue
        given.append(name if value is True else f"{name}={_value(value)}")
    if options.mine:
        # In the place of what it stands for.
        given = ["mine", *(word for word in given if not word.startswith(("squash_", "suid=", "dev=")))]
    return given


def _places(durations: Durations) -> str:
    nanoseconds, places = durations
    return " ".join(map(str, (nanoseconds, *places)))


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, tuple):
        return ":".join(_value(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _written(fields: Iterable[tuple[str, str]]) -> bytes:
    return "".join(f"{name}={value}\0" for name, value in fields).encode(errors="surrogateescape")
