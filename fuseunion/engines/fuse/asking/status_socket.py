"""The socket at which a daemon says how its mount is doing (linux/runtime).

Nothing may come of it for the mount: whoever connects is told once and at once, as much as the socket takes without
waiting, and is then let go of. Nothing is read from anybody, no path is looked up (the mount may cover it), no more
than a hundred are answered in a second, and an error ends one answer or all of them, but never the mount.

The socket gets its name when it listens, so that a name without a listener is always a dead daemon's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

import trio

from fuseunion.linux.runtime import directory

_log = logging.getLogger("fuseunion.status")

_BACKLOG = 16
_PAUSE = 0.01
"""Seconds between two answers."""

_CREDENTIALS = struct.Struct("3i")


class NamedSocket:
    """A socket that listens, and can be found once it is shown.

    Args:
        dir_fd: the runtime directory, which belongs to this from now on.
        listener: bound to `hidden` in it.
        hidden: a name that nobody looks for.
        shown: the name that it gets.
    """

    def __init__(self, dir_fd: int, listener: socket.socket, hidden: str, shown: str) -> None:
        self._dir_fd = dir_fd
        self.listener = listener
        self._name = hidden
        self._shown = shown

    @property
    def token(self) -> str:
        """What the names of all sockets of this daemon hold."""
        return self._shown.partition("-")[2].partition(".")[0]

    def show(self) -> None:
        """Let it be found: the mount is there."""
        try:
            os.rename(self._name, self._shown, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)
        except OSError as error:
            _log.debug("the status socket cannot be shown: %s", error)
        else:
            self._name = self._shown

    def close(self) -> None:
        """The mount has ended; may be called again."""
        if self._dir_fd < 0:
            return
        self.listener.close()
        _remove(self._name, self._dir_fd)
        os.close(self._dir_fd)
        self._dir_fd = -1


class StatusSocket(NamedSocket):
    """The one that the status is told at."""

    async def serve(self, facts: Callable[[], bytes]) -> None:
        """Answer until cancelled; then it is closed, so that nobody waits for an answer.

        Args:
            facts: makes the answer.
        """
        try:
            await self._serve(facts)
        finally:
            self.close()

    async def _serve(self, facts: Callable[[], bytes]) -> None:
        while True:
            await trio.lowlevel.wait_readable(self.listener.fileno())
            try:
                connection, _ = self.listener.accept()
                with connection:
                    connection.setblocking(False)
                    if may_ask(connection):
                        connection.send(facts(), socket.MSG_NOSIGNAL)
            except OSError as error:
                # No descriptor or memory for it (accept(2)); who asked has gone.
                _log.debug("a question for the status is not answered: %s", error)
            except Exception:  # noqa: BLE001 - whatever it is, it is not worth a mount
                _log.exception("the status is not told any more")
                return
            await trio.sleep(_PAUSE)


def _remove(name: str, dir_fd: int) -> None:
    with contextlib.suppress(OSError):  # somebody did, or its filesystem has gone: it is in nobody's way
        os.unlink(name, dir_fd=dir_fd)


def may_ask(connection: socket.socket) -> bool:
    """Whether the one who asks is this user, or root as this user namespace knows it (unix(7), SO_PEERCRED)."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(data)[1] in (0, os.geteuid())


def make() -> StatusSocket | None:
    """As `bind`, for the status."""
    found = bind()
    return None if found is None else StatusSocket(*found.parts("socket"))


class Bound(NamedTuple):
    """A socket that listens under a name that nobody looks for, and the directory that it is in."""

    dir_fd: int
    listener: socket.socket
    hidden: str
    token: str

    def parts(self, suffix: str) -> tuple[int, socket.socket, str, str]:
        """What a NamedSocket is made of."""
        return self.dir_fd, self.listener, self.hidden, f"{os.getpid()}-{self.token}.{suffix}"


def bind(token: str | None = None) -> Bound | None:
    """A socket in the runtime directory; None where there can be none, which harms nobody.

    Args:
        token: part of its name; None for a new one. All sockets of a daemon have one, so that they go together.

    It leaves the process at `/`: a socket's path is short (unix(7)), so it is bound from within the directory.
    """
    dir_fd = directory.make()
    if dir_fd is None:
        return None
    hidden = f".{os.urandom(6).hex()}"
    if token is None:
        token = hidden[1:]
    umask = os.umask(0o177)
    with ExitStack() as undo:
        undo.callback(os.close, dir_fd)
        try:
            listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.setblocking(False)
            os.fchdir(dir_fd)
            listener.bind(hidden)
            undo.callback(_remove, hidden, dir_fd)
            listener.listen(_BACKLOG)
        except OSError as error:
            _log.debug("there is no status socket: %s", error)
            return None
        finally:
            os.umask(umask)
            os.chdir("/")
        undo.pop_all()
    return Bound(dir_fd, listener, hidden, token)
