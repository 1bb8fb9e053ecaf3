"""Waiting for somebody's lease on a file of a layer (fcntl(2), F_SETLEASE), while the mount goes on.

Opening such a file makes the kernel ask for the lease and wait until it is given back, /proc/sys/fs/lease-break-time
seconds at most. The core does not wait: it raises EAGAIN, and the kernel has asked all the same. So who opens the file
in the mount waits as anywhere else, and nobody else does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")

_PAUSE = 0.05
_LONGEST = 60.0
"""Seconds; more than the lease-break-time that Linux has by default, 45."""


class Patience:
    """How long one request waits for leases."""

    __slots__ = ("_end",)

    def __init__(self) -> None:
        self._end: float | None = None

    async def wait(self, error: BlockingIOError) -> None:
        """Wait a moment, before the next attempt.

        Args:
            error: of the last one.

        Raises:
            OSError: EAGAIN when the request has waited long enough.
        """
        now = time.monotonic()
        if self._end is None:
            self._end = now + _LONGEST
        if now > self._end:
            raise error
        await trio.sleep(_PAUSE)


async def patiently(call: Callable[[], T]) -> T:
    """Make a call of the core that opens a file, again and again while somebody has a lease on it.

    Args:
        call: changes nothing when it raises EAGAIN, and looks at everything anew.

    Raises:
        OSError: of the call.
    """
    patience = Patience()
    while True:
        try:
            return call()
        except BlockingIOError as error:
            await patience.wait(error)
