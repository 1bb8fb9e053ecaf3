"""The socket at which a daemon is told what to do, and asked what takes more than one line (linux/runtime/frames.py).

Nobody but the user who mounted and root gets an answer. What is asked is done in the event loop, in steps, like any
request; what is answered waits for nobody but the one who reads it: each connection is a task of its own, with one
message under way. There are at most sixteen, each may be quiet for a minute, and an error ends one of them, never the
mount.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import ExitStack, aclosing
from typing import Self, TypeAlias

import trio

from fuseunion.engines.fuse.asking.sockets.listener import Listener, may_ask
from fuseunion.linux.runtime import frames
from fuseunion.linux.runtime.frames import Record

_log = logging.getLogger("fuseunion.control")

_PAUSE = 0.01
"""Seconds between two connections."""

_MOST = 16
_MOST_GIVEN = 1
"""Descriptors with one order."""

_QUIET = 60.0
"""Seconds that a connection may stay without an order."""

Said: TypeAlias = Iterable[Iterable[tuple[str, str | bytes | float]]]
"""The records of one message."""


class Asker:
    """Who asks, as long as the conversation goes on.

    Attributes:
        given: the descriptors that came along with the order; who takes one out closes it.
        at_end: what is called when the conversation has ended.
    """

    __slots__ = ("at_end", "given")

    def __init__(self) -> None:
        self.given: list[int] = []
        self.at_end = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self.at_end:
            self.close_given()

    def close_given(self) -> None:
        """Close what nobody took."""
        while self.given:
            os.close(self.given.pop())


Order: TypeAlias = Callable[[Record, Asker], AsyncGenerator[Said, None]]
"""Does what a record asks for, and says one message after another. Raises OSError, or ValueError for what it does not
understand."""


class ControlSocket:
    """The conversations of one mount.

    Args:
        orders: what can be asked for.
    """

    def __init__(self, listener: Listener, orders: Mapping[str, Order]) -> None:
        self._listener = listener
        self._orders = orders
        self._count = 0

    async def serve(self) -> None:
        """Answer until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    await trio.lowlevel.wait_readable(self._listener.fileno())
                    self._begin(nursery)
                    await trio.sleep(_PAUSE)
        finally:
            self._listener.close()

    def _begin(self, nursery: trio.Nursery) -> None:
        try:
            connection = self._listener.accept()
        except OSError as error:
            _log.debug("nobody is spoken to: %s", error)  # no descriptor or memory for it (accept(2))
            return
        try:
            if may_ask(connection):
                if self._count < _MOST:
                    self._count += 1
                    nursery.start_soon(self._converse, connection)
                    return
                connection.send(frames.packed([[("refused", "too many others ask its daemon")]]), socket.MSG_NOSIGNAL)
        except OSError as error:
            _log.debug("nobody knows who asks: %s", error)
        connection.close()

    async def _converse(self, connection: socket.socket) -> None:
        try:
            with connection, Asker() as asker:
                while (order := await _received(connection, asker.given)) is not None:
                    await self._obey(connection, order, asker)
                    asker.close_given()
        except OSError as error:
            _log.debug("a conversation ended: %s", error)
        except Exception:  # noqa: BLE001 - whatever it is, it is not worth a mount
            _log.exception("unexpected error in a conversation")
        finally:
            self._count -= 1

    async def _obey(self, connection: socket.socket, order: Record, asker: Asker) -> None:
        name = frames.first(order, "order")
        obey = self._orders.get(name)
        if obey is None:
            await _send(connection, [[("refused", f"its daemon does not know how to '{name}'")]])
            return
        refusal = ""
        async with trio.open_nursery() as nursery:
            # Who has gone is noticed, also while there is nothing to be said.
            nursery.start_soon(_until_gone, connection, nursery.cancel_scope)
            try:
                async with aclosing(obey(order, asker)) as messages:
                    async for message in messages:
                        await _send(connection, message)
            except OSError as error:
                refusal = error.strerror or "it failed"
            except ValueError as error:
                refusal = str(error)
            nursery.cancel_scope.cancel()
        if refusal:
            await _send(connection, [[("refused", refusal)]])


async def _until_gone(connection: socket.socket, scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(connection)
    try:
        gone = not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        gone = True
    if gone:
        scope.cancel()


async def _received(connection: socket.socket, given: list[int]) -> Record | None:
    """The next order; None when there is no more, or none comes in time.

    Args:
        given: gets the descriptors that come along.
    """
    with trio.move_on_after(_QUIET):
        head = await _exactly(connection, frames.LENGTH.size, given)
        if head is None:
            return None
        (length,) = frames.LENGTH.unpack(head)
        if not 0 < length <= frames.LARGEST_ORDER:
            return None
        body = await _exactly(connection, length, given)
        records = frames.records(body or b"")
        return records[0] if records else None
    return None


async def _exactly(connection: socket.socket, size: int, given: list[int]) -> bytes | None:
    data = b""
    while len(data) < size:
        await trio.lowlevel.wait_readable(connection)
        piece, fds, _, _ = socket.recv_fds(connection, size - len(data), _MOST_GIVEN, socket.MSG_CMSG_CLOEXEC)
        given += fds
        if len(given) > _MOST_GIVEN:
            return None  # nobody asks like that
        if not piece:
            return None
        data += piece
    return data


async def _send(connection: socket.socket, message: Said) -> None:
    data = memoryview(frames.packed(message))
    while data:
        try:
            data = data[connection.send(data, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(connection)
        else:
            await trio.lowlevel.checkpoint()
