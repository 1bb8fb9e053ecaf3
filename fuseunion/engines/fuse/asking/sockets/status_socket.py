"""The socket at which a daemon says how its mount is doing (linux/runtime).

Nothing may come of it for the mount: whoever connects is told once and at once, as much as the socket takes without
waiting, and is then let go of. Nothing is read from anybody, no path is looked up (the mount may cover it), no more
than a hundred are answered in a second, and an error ends one answer or all of them, but never the mount.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import trio

from fuseunion.engines.fuse.asking.sockets.listener import Listener, may_ask

_log = logging.getLogger("fuseunion.status")

_PAUSE = 0.01
"""Seconds between two answers."""


async def serve(listener: Listener, facts: Callable[[], bytes]) -> None:
    """Answer until cancelled; then it is closed, so that nobody waits for an answer.

    Args:
        facts: makes the answer.
    """
    try:
        await _serve(listener, facts)
    finally:
        listener.close()


async def _serve(listener: Listener, facts: Callable[[], bytes]) -> None:
    while True:
        await trio.lowlevel.wait_readable(listener.fileno())
        try:
            with listener.accept() as connection:
                if may_ask(connection):
                    connection.send(facts(), socket.MSG_NOSIGNAL)
        except OSError as error:
            # No descriptor or memory for it (accept(2)); who asked has gone.
            _log.debug("a question for the status is not answered: %s", error)
        except Exception:  # noqa: BLE001 - whatever it is, it is not worth a mount
            _log.exception("the status is not told any more")
            return
        await trio.sleep(_PAUSE)
