"""What the mounts of a user say of themselves, asked through their sockets in the runtime directory.

Nothing is sent: who connects is told, and the connection ends. An answer is a list of `NAME=VALUE`, each ended by a
zero byte, so that every path is itself; a name may occur several times.

A socket at which nobody listens is a dead daemon's: a daemon gives its socket the name only when it listens, and the
kernel refuses a connection (ECONNREFUSED) only when nobody holds the other end. So whoever is refused removes it.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
import time
from contextlib import ExitStack
from typing import NamedTuple

from fuseunion.linux.runtime import directory
from fuseunion.linux.runtime.directory import CONTROL, PAUSE, SUFFIX

PATIENCE = 2.0
"""Seconds for all answers together."""

_LARGEST = 1 << 20
_CREDENTIALS = struct.Struct("3i")
_PAUSE = 0.02

Fields = dict[str, list[str]]


class Answer(NamedTuple):
    """What one mount says.

    Attributes:
        pid: who listens, by the kernel's word; 0 for a process of another pid namespace.
        fields: None where it did not answer in time.
        control: the name of its control socket (conversation.py), if it has one.
    """

    pid: int
    fields: Fields | None
    control: str = ""


def answers(*, pid: int | None = None) -> list[Answer]:
    """Ask every mount of this user, all at once.

    Args:
        pid: ask this process alone.
    """
    end = time.monotonic() + PATIENCE
    with ExitStack() as stack:
        asked = []
        for fd in directory.existing():
            stack.callback(os.close, fd)
            for name in sorted(os.listdir(fd)):
                connection = _connected(fd, name, end) if name.endswith(SUFFIX) else None
                if connection is not None:
                    stack.enter_context(connection)
                    heard = listener(connection)
                    if heard is not None and pid in (None, heard):
                        asked.append((heard, connection, name.removesuffix(SUFFIX) + CONTROL))
        return [Answer(heard, _received(connection, end), control) for heard, connection, control in asked]


def connected(dir_fd: int, name: str) -> socket.socket | None:
    """A connection to one socket of a runtime directory; None for what is none, and for a dead one."""
    return _connected(dir_fd, name, time.monotonic() + PATIENCE)


def _connected(dir_fd: int, name: str, end: float) -> socket.socket | None:
    """A connection to one socket; None for what is none, and for a dead one, which is removed."""
    try:
        st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return None  # ended meanwhile
    if not stat.S_ISSOCK(st.st_mode) or st.st_uid != os.geteuid():
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    # Of a socket's path no more than 107 bytes can be said (unix(7)).
    path = f"/proc/self/fd/{dir_fd}/{name}"
    while True:
        try:
            connection.connect(path)
            return connection
        except BlockingIOError:  # others wait there already
            if time.monotonic() >= end:
                break
            time.sleep(_PAUSE)
        except ConnectionRefusedError:
            _remove(dir_fd, name)
            break
        except OSError:
            break  # ended meanwhile; no /proc
    connection.close()
    return None


def _remove(dir_fd: int, name: str) -> None:
    if directory.is_a_view(dir_fd):
        return
    stem = name.rpartition(".")[0]
    for dead in (stem + SUFFIX, stem + CONTROL, stem + PAUSE):
        try:
            os.unlink(dead, dir_fd=dir_fd)
        except OSError:
            pass  # by somebody else meanwhile; a filesystem that cannot be written


def listener(connection: socket.socket) -> int | None:
    """The process that listens; None where it is not this user's."""
    size = _CREDENTIALS.size
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(pid) if uid == os.geteuid() else None


def _received(connection: socket.socket, end: float) -> Fields | None:
    """The whole answer; None where it does not come, or is none."""
    data = bytearray()
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    while len(data) < _LARGEST:
        if not poll.poll(max(end - time.monotonic(), 0) * 1000):
            return None
        try:
            piece = connection.recv(_LARGEST)
        except BlockingIOError:
            continue
        except OSError:
            return None
        if not piece:
            break
        data += piece
    return _fields(bytes(data)) if data.endswith(b"\0") else None


def _fields(data: bytes) -> Fields:
    fields: Fields = {}
    for item in data.split(b"\0")[:-1]:
        name, _, value = item.partition(b"=")
        fields.setdefault(os.fsdecode(name), []).append(os.fsdecode(value))
    return fields
