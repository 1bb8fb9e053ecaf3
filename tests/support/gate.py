"""A worker thread that a trio test stops and lets go on, so that "meanwhile" is a moment and not a sleep."""

from __future__ import annotations

import threading

import trio

PATIENCE = 10.0
"""Seconds after which a thread that nobody lets go on gives up, so that a broken test ends."""


class Gate:
    """Where a worker thread waits.

    Attributes:
        reached: set when a thread has come to the gate.
        passes: how many have come.
    """

    def __init__(self) -> None:
        self.reached = trio.Event()
        self.passes = 0
        self._open = threading.Event()

    def wait(self) -> None:
        """Called in the worker thread."""
        self.passes += 1
        trio.from_thread.run_sync(self.reached.set)
        assert self._open.wait(PATIENCE), "nobody opened the gate"

    def open(self) -> None:
        """Let those who wait go on, and those who come later."""
        self._open.set()
