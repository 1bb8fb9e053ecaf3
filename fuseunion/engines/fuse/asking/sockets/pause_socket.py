"""The socket at which a daemon is asked to change nothing for a moment, so that the upper can be copied as it is.

Who connects gets one byte, and from then on the event loop does nothing at all until the connection is closed: so the
upper is as a crash at this instant would leave it, which is always an upper that can be mounted. Whoever asks may be
killed, or stop: the kernel closes the connection of the one, and the other has `LONGEST` seconds. Then the connection
is closed, which says that the copy is not of one instant. Before the next pause the mount gets as much time as the last
one took.

Worker threads write to files in the work directory, and data into files that are marked as having none (metacopy):
neither is part of what is shown.
"""

from __future__ import annotations

import logging
import select
import socket
import time

import trio

from fuseunion.engines.fuse.asking.sockets.listener import Listener, may_ask

_log = logging.getLogger("fuseunion.pause")

LONGEST = 2.0
"""Seconds."""


async def serve(listener: Listener) -> None:
    """Pause whenever somebody asks, until cancelled; then it is closed."""
    try:
        while True:
            await trio.lowlevel.wait_readable(listener.fileno())
            await trio.sleep(_answered(listener))
    except Exception:  # noqa: BLE001 - whatever it is, it is not worth a mount
        _log.exception("no pause is made any more")
    finally:
        listener.close()


def _answered(listener: Listener) -> float:
    """One pause; returns how long it was, in seconds."""
    since = time.monotonic()
    try:
        with listener.accept() as connection:
            if may_ask(connection):
                connection.send(b"+", socket.MSG_NOSIGNAL)
                poll = select.poll()
                poll.register(connection, select.POLLIN)
                poll.poll(LONGEST * 1000)
    except OSError as error:
        # No descriptor or memory for it (accept(2)); who asked has gone.
        _log.debug("a pause is not made: %s", error)
    return max(time.monotonic() - since, 0.01)
