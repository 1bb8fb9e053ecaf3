"""A socket in the runtime directory at which a daemon listens.

It gets its name when the mount is there, so that a name without a listener is always a dead daemon's. Only the user who
mounted, and root, are answered (`may_ask`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from contextlib import ExitStack

from fuseunion.linux.runtime import directory

_log = logging.getLogger("fuseunion.status")

_BACKLOG = 16
_CREDENTIALS = struct.Struct("3i")


class Listener:
    """A socket that listens, and can be found once it is shown.

    Args:
        dir_fd: the runtime directory, which belongs to this from now on.
        listening: bound to `hidden` in it.
        hidden: a name that nobody looks for.
        shown: the name that it gets.
    """

    def __init__(self, dir_fd: int, listening: socket.socket, hidden: str, shown: str) -> None:
        self._dir_fd = dir_fd
        self._listening = listening
        self._name = hidden
        self._shown = shown

    def fileno(self) -> int:
        """The descriptor, to wait for somebody who connects."""
        return self._listening.fileno()

    def accept(self) -> socket.socket:
        """A connection that does not wait; the caller closes it. Raises OSError as accept(2)."""
        connection, _ = self._listening.accept()
        connection.setblocking(False)
        return connection

    def show(self) -> None:
        """Let it be found: the mount is there."""
        try:
            os.rename(self._name, self._shown, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)
        except OSError as error:
            _log.debug("a socket cannot be shown: %s", error)
        else:
            self._name = self._shown

    def close(self) -> None:
        """The mount has ended; may be called again."""
        if self._dir_fd < 0:
            return
        self._listening.close()
        _remove(self._name, self._dir_fd)
        os.close(self._dir_fd)
        self._dir_fd = -1


def _remove(name: str, dir_fd: int) -> None:
    with contextlib.suppress(OSError):  # somebody did, or its filesystem has gone: it is in nobody's way
        os.unlink(name, dir_fd=dir_fd)


def may_ask(connection: socket.socket) -> bool:
    """Whether the one who asks is this user, or root as this user namespace knows it (unix(7), SO_PEERCRED)."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(data)[1] in (0, os.geteuid())


def make(*suffixes: str) -> list[Listener]:
    """Sockets in the runtime directory, one for each suffix of their common name; none where there can be none, which
    harms nobody.

    It leaves the process at `/`: a socket's path is short (unix(7)), so it is bound from within the directory.
    """
    token = os.urandom(6).hex()
    made: list[Listener] = []
    for suffix in suffixes:
        listener = _make(token, suffix)
        if listener is None:
            for other in made:
                other.close()
            return []
        made.append(listener)
    return made


def _make(token: str, suffix: str) -> Listener | None:
    dir_fd = directory.make()
    if dir_fd is None:
        return None
    hidden = f"{suffix}-{token}"
    umask = os.umask(0o177)
    with ExitStack() as undo:
        undo.callback(os.close, dir_fd)
        try:
            listening = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listening.setblocking(False)
            os.fchdir(dir_fd)
            listening.bind(hidden)
            undo.callback(_remove, hidden, dir_fd)
            listening.listen(_BACKLOG)
        except OSError as error:
            _log.debug("there is no socket: %s", error)
            return None
        finally:
            os.umask(umask)
            os.chdir("/")
        undo.pop_all()
    return Listener(dir_fd, listening, hidden, f"{os.getpid()}-{token}{suffix}")
