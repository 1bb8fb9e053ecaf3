"""Asking the daemon of a mount to change nothing for a moment (engines/fuse/asking/sockets/pause_socket.py)."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from fuseunion.linux.runtime import answers, directory


class Pause:
    """A pause that is being kept.

    Args:
        connection: to the daemon.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @property
    def lasts(self) -> bool:
        """False when the daemon has gone on: what was read since is not of one instant."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return not poll.poll(0)


@contextmanager
def paused(pid: int) -> Iterator[Pause]:
    """Keep a daemon from doing anything for the length of a block, or for as long as it allows.

    Args:
        pid: of the daemon.

    Raises:
        OSError: ENOENT where it cannot be asked; ETIMEDOUT where it does not answer.
    """
    connection = _connected(pid)
    with connection:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        if not poll.poll(answers.PATIENCE * 4 * 1000) or connection.recv(1) != b"+":
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        yield Pause(connection)


def _connected(pid: int) -> socket.socket:
    for fd in directory.existing():
        try:
            for name in sorted(os.listdir(fd)):
                if name.startswith(f"{pid}-") and name.endswith(directory.PAUSE):
                    connection = answers.connected(fd, name)
                    if connection is not None:
                        if answers.listener(connection) == pid:
                            return connection
                        connection.close()
        finally:
            os.close(fd)
    raise FileNotFoundError(errno.ENOENT, "it cannot be asked to pause")
