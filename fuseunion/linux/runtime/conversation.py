"""A command's side of a control socket: what it asks the daemon of a mount, and what it is told."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from types import TracebackType
from typing import Self

from fuseunion.linux.os_error import os_error
from fuseunion.linux.runtime import directory, frames
from fuseunion.linux.runtime.frames import Record

_CREDENTIALS = struct.Struct("3i")

PATIENCE = 10.0
"""Seconds for one answer."""


class RefusedError(Exception):
    """The daemon answered that it cannot do what was asked.

    Attributes:
        message: why, in one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Conversation:
    """A connection to the daemon of one mount.

    Args:
        name: of its socket, in one of the runtime directories.

    Raises:
        OSError: ECONNREFUSED and the like: it has ended; ENOENT for a daemon of an older version.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._socket = _connected(name)

    def again(self) -> None:
        """Begin anew: what was being said is not listened to any more. Raises as the class."""
        self._socket.close()
        self._socket = _connected(self._name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor, to wait for what comes next."""
        return self._socket.fileno()

    @property
    def daemon_uid(self) -> int:
        """Whose daemon it is, by the kernel's word (unix(7), SO_PEERCRED)."""
        data = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(data)[1])

    def send(self, order: str, descriptor: int | None = None, /, **fields: str | bytes | float | list[str]) -> None:
        """Ask for something.

        Args:
            order: what.
            descriptor: goes along; it stays the caller's.
            fields: more about it; a list is a field for each.

        Raises:
            OSError: the daemon has ended; ETIMEDOUT.
        """
        listed = [
            (name, each) for name, value in fields.items() for each in (value if isinstance(value, list) else [value])
        ]
        message = frames.packed([[("order", order), *listed]])
        if len(message) > frames.LARGEST_ORDER:
            raise RefusedError("that is too much at once; give fewer paths")
        try:
            if descriptor is not None:
                message = message[socket.send_fds(self._socket, [message], [descriptor]) :]
            self._socket.sendall(message)
        except BrokenPipeError:
            pass  # it has ended the conversation; what it said before that says why

    def receive(self, patience: float | None = PATIENCE) -> list[Record] | None:
        """The next message; None when there are no more.

        Args:
            patience: in seconds; None to wait for ever.

        Raises:
            RefusedError: it says why there is no answer.
            OSError: ETIMEDOUT; EPROTO for what is no message; ECONNRESET.
        """
        end = None if patience is None else time.monotonic() + patience
        head = self._received(frames.LENGTH.size, end)
        if not head:
            return None
        (length,) = frames.LENGTH.unpack(head)
        if length > frames.LARGEST_ANSWER:
            raise OSError(errno.EPROTO, "its daemon says what is not understood")
        records = frames.records(self._received(length, end) if length else b"")
        if records and "refused" in records[0]:
            raise RefusedError(frames.first(records[0], "refused"))
        return records

    def ask(self, order: str, **fields: str | bytes | float | list[str]) -> list[Record]:
        """`send` and `receive`, of one answer.

        Raises:
            RefusedError, OSError: as these; ECONNRESET where none comes.
        """
        self.send(order, **fields)
        answer = self.receive()
        if answer is None:
            raise os_error(errno.ECONNRESET)
        return answer

    def _received(self, size: int, end: float | None) -> bytes:
        data = bytearray()
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while len(data) < size:
            if not poll.poll(None if end is None else max(end - time.monotonic(), 0) * 1000):
                raise TimeoutError(errno.ETIMEDOUT, "its daemon does not answer")
            piece = self._socket.recv(size - len(data))
            if not piece:
                if data:
                    raise os_error(errno.ECONNRESET)
                break
            data += piece
        return bytes(data)


def _connected(name: str) -> socket.socket:
    error: OSError | None = None
    found: socket.socket | None = None
    for fd in directory.existing():
        try:
            if found is None:
                found = _connect(f"/proc/self/fd/{fd}/{name}")
        except OSError as failure:
            error = failure
        finally:
            os.close(fd)
    if found is None:
        raise error or os_error(errno.ENOENT)
    return found


def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(PATIENCE)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection
