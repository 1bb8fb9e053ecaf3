"""Long work in the loop: after each millisecond of it the other requests get their turn.

A checkpoint of trio costs some 30 microseconds, so one is not made after every step.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import TypeVar

import trio

from fuseunion.engines.fuse.serving.waiting.later import Later
from fuseunion.steps import Steps

_T = TypeVar("_T")

_TURN = 0.001
"""Seconds."""


class Pace:
    """How long one request has kept the loop."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = time.monotonic()

    @property
    def is_over(self) -> bool:
        """True when it is the others' turn."""
        return time.monotonic() - self._since >= _TURN

    async def pause(self) -> None:
        """Let others go on, if it is their turn. Anything may have changed then."""
        if self.is_over:
            await trio.lowlevel.checkpoint()
            self._since = time.monotonic()


def now_or_in_steps(steps: Steps[_T]) -> _T | Later[_T]:
    """Do work in steps: at once what is done before it is the others' turn, the rest later.

    Raises:
        OSError: of the work.
    """
    pace = Pace()
    try:
        while not pace.is_over:
            next(steps)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    return in_steps(steps)


async def in_steps(steps: Steps[_T]) -> _T:
    """Do work in steps.

    Returns:
        Its result. Raises what it raises.
    """
    pace = Pace()
    with closing(steps):
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            await pace.pause()
