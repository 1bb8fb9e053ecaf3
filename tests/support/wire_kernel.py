"""The other end of /dev/fuse, for tests of the extension module by itself."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fuseunion.engines.fuse.wire import layouts
from fuseunion.engines.fuse.wire.native import device as found

HEADER = struct.Struct("=IIQQIIII")
OUT = struct.Struct("=IiQ")
ABSENT = layouts.ENTRY.pack(0, 0, 100, 0, 5, *(0,) * 17)
ATTRIBUTES = struct.Struct("=QII" + "QQQQQQIIIIIIIIII")
UID, GID, PID = 1000, 1001, 1002
NODE = 77


class Kernel:
    """The other end of the descriptor."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fd = theirs.detach()
        self.ours.settimeout(5)
        self.calls: list[tuple[Any, ...]] = []
        self.later: list[tuple[Any, ...]] = []
        self.errors: list[BaseException] = []
        self.changed: list[int] = []
        self.answer: Any = b""
        self.made: list[tuple[Any, ...]] = []
        self.number: Any = 78
        self.device: Any = found.device
        self._unique = 0

    def attach(self, *opcodes: int, refusals: dict[int, int] | None = None, compares: bool = False) -> None:
        """Let `calls` and `answer` be the handler of these."""
        handlers = {opcode: self._handler(opcode) for opcode in (*opcodes, layouts.FORGET)}
        self.attach_handlers(handlers, refusals or {}, compares=compares)

    def attach_handlers(
        self, handlers: dict[int, Callable[..., Any]], refusals: dict[int, int], *, compares: bool = False
    ) -> None:
        """Serve with these handlers."""
        self.device.attach(
            self.fd,
            handlers,
            refusals,
            self._later,
            self._failed,
            self.changed.append,
            self.take_over,
            *(0, 0, 100, 5, compares),
        )

    def _handler(self, opcode: int) -> Callable[..., Any]:
        def handler(*args: Any) -> Any:
            self.calls.append((opcode, *args))
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

        return handler

    def _later(self, *args: Any) -> None:
        self.later.append(args)

    def _failed(self, _opcode: int, error: BaseException) -> int:
        self.errors.append(error)
        return error.errno or errno.EIO if isinstance(error, OSError) else errno.EIO

    def take_over(self, *args: Any) -> Any:
        """What is called with a file that was made."""
        self.made.append(args)
        if isinstance(self.number, BaseException):
            raise self.number
        return self.number

    def send(self, opcode: int, body: bytes = b"", node: int = NODE, ids: tuple[int, int] = (UID, GID)) -> int:
        """Send a request; returns its number."""
        self._unique += 2
        self.ours.send(HEADER.pack(HEADER.size + len(body), opcode, self._unique, node, *ids, PID, 0) + body)
        return self._unique

    def serve(self) -> int:
        """Let the module deal with one request."""
        outcome: int = self.device.serve(1, 0, 0)
        return outcome

    def reply(self, unique: int) -> tuple[int, bytes]:
        """Error number and body of the answer to a request."""
        number, error, body = self.reply_to_any()
        assert number == unique
        return error, body

    def reply_to_any(self) -> tuple[int, int, bytes]:
        """The next answer: the number of its request, the error number, the body."""
        message = self.ours.recv(1 << 21)
        length, error, number = OUT.unpack_from(message)
        assert length == len(message)
        return number, -error, message[OUT.size :]

    def ask(
        self, opcode: int, body: bytes = b"", node: int = NODE, ids: tuple[int, int] = (UID, GID)
    ) -> tuple[int, bytes]:
        """Send a request and have it answered."""
        unique = self.send(opcode, body, node, ids)
        self.serve()
        return self.reply(unique)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    with made.ours:
        yield made
    os.close(made.fd)


def attributes(st: os.stat_result, number: int = NODE, nlink: int | None = None) -> bytes:
    """struct fuse_attr_out; with another count of links, if one is given."""
    times = (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)
    return ATTRIBUTES.pack(
        *(100, 5, 0, number, st.st_size, st.st_blocks),
        *(ns // 10**9 for ns in times),
        *(ns % 10**9 for ns in times),
        *(st.st_mode, st.st_nlink if nlink is None else nlink, st.st_uid, st.st_gid, 0, st.st_blksize, 0),
    )
