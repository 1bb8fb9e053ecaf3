"""Results that are there at once, and those that take longer.

A handler that has nothing to wait for is a plain function: a coroutine, and a turn of the event loop, would cost more
than most of them do. One that finds that it has to wait returns a coroutine instead, which ends with the result.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any, TypeVar

from fuseunion.engines.fuse.serving.waiting.leases import patiently

T = TypeVar("T")

Later = Coroutine[Any, Any, T]
"""What ends with a result."""


async def ended(result: T | Later[T]) -> T:
    """The result, when it is there. Raises what the handler raises."""
    if isinstance(result, CoroutineType):
        return await result  # type: ignore[no-any-return]
    return result  # type: ignore[return-value]


def now_or_patiently(call: Callable[[], T]) -> T | Later[T]:
    """Make a call of the core that opens a file; where somebody has a lease on it, again and again (leases.py)."""
    try:
        return call()
    except BlockingIOError:
        return patiently(call)
