"""Cutting a failing sequence down to the operations that it needs (Zeller's ddmin, with a time limit)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def shrink(items: Sequence[Item], fails: Callable[[Sequence[Item]], bool], seconds: float) -> list[Item]:
    """A shorter sequence that still fails; the shortest that the time allowed to find.

    :param fails: whether a sequence fails; it is known to be true for `items`
    """
    deadline = time.monotonic() + seconds
    current = list(items)
    pieces = 2
    while len(current) > 1 and time.monotonic() < deadline:
        size = max(1, len(current) // pieces)
        for start in range(0, len(current), size):
            candidate = current[:start] + current[start + size :]
            if time.monotonic() > deadline:
                break
            if candidate and fails(candidate):
                current = candidate
                pieces = max(2, pieces - 1)
                break
        else:
            if size == 1:
                break
            pieces = min(len(current), pieces * 2)
    return current
