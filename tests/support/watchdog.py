"""A watchdog against mounts that stop answering.

A process that waits for a dead-locked FUSE daemon cannot be interrupted, so no alarm inside pytest could end it. A
child process watches instead: told of a token and a time limit, it kills every process that carries the token once
the time is up. The kernel then fails the waiting call with ENOTCONN, and the test fails with it.
"""

from __future__ import annotations

import os
import select
import time

from tests.support import processes


class Watchdog:
    """The pipe to the watching child; `arm` and `disarm` frame one test."""

    def __init__(self) -> None:
        read_end, self._pipe = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._pipe)
            _watch(read_end)
        os.close(read_end)

    def arm(self, token: str, seconds: float) -> None:
        """Kill whatever carries the token unless `disarm` comes within `seconds`."""
        os.write(self._pipe, f"{token} {seconds}\n".encode())

    def disarm(self) -> None:
        """The test ended in time."""
        os.write(self._pipe, b"\n")

    def close(self) -> None:
        """End the child."""
        os.close(self._pipe)
        os.waitpid(self._child, 0)


def _watch(pipe: int) -> None:
    token, deadline = "", 0.0
    while True:
        remaining = max(0.0, deadline - time.monotonic()) if token else None
        readable, _, _ = select.select([pipe], [], [], remaining)
        if not readable:
            processes.kill_all(token)
            token = ""
            continue
        text = os.read(pipe, 65536).decode()
        if not text:
            os._exit(0)
        order = text.splitlines()[-1].split()
        token, deadline = (order[0], time.monotonic() + float(order[1])) if order else ("", 0.0)
