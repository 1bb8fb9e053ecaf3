"""Numbers of requests, and how long their answers took.

A histogram has one place for each power of two: place n is for what took at most 2^n microseconds, and longer than the
place before; the last is for all else. The extension (wire/native/state.h, PLACES) counts for itself in the same way.

What the kernel answered from its own caches never came here, and nobody counts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

PLACES = 25

Durations = tuple[int, tuple[int, ...]]
"""Nanoseconds of all together, and how many there were of each place."""


class Counts(NamedTuple):
    """Since the mount was made.

    Attributes:
        requests: by their names.
        errors: how many were answered with each error number.
        alone: how many the extension answered without Python, by the names of the requests.
        durations: of the answers, by the names of the requests.
    """

    requests: Mapping[str, int]
    errors: Mapping[int, int]
    alone: Mapping[str, int]
    durations: Mapping[str, Durations]


NONE = Counts({}, {}, {}, {})


class Histogram:
    """How long answers took."""

    __slots__ = ("_counts", "_nanoseconds")

    def __init__(self) -> None:
        self._nanoseconds = 0
        self._counts = [0] * PLACES

    def add(self, nanoseconds: int) -> None:
        """One more answer."""
        self._nanoseconds += nanoseconds
        place = (max(nanoseconds - 1, 0) // 1000).bit_length()
        self._counts[min(place, PLACES - 1)] += 1

    def durations(self) -> Durations:
        """What was counted."""
        return self._nanoseconds, tuple(self._counts)


def together(one: Durations, other: Durations) -> Durations:
    """The durations of two kinds of requests that have one name."""
    return one[0] + other[0], tuple(map(sum, zip(one[1], other[1], strict=True)))
