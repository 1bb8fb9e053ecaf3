"""What the daemon of a mount can be asked for at its control socket, each with the fields of the order.

    add-lower path=PATH               get ready for one more lower on top of the others; its descriptor comes along
    add-lower-now                     add it
    log     since=NUMBER [follow=1]   the copy-ups after that one; with `follow` also those that come
    refresh path=PATH ...             forget what is remembered of the lowers there and beneath
    top     milliseconds=NUMBER       all numbers again and again, the busiest inodes and the copy-ups in between
    which   path=PATH ...             where each path from the root of the mount comes from

`refresh`, and what adds a lower, say of directories (`directory`, its path) what the kernel may remember of them and
cannot be told from here: the names (`name`) that it has to look up again, and the files (`file`) whose pages it has to
drop. What takes long says now and then that it is `going` on. It ends with `done`, or with `ready` for `add-lower-now`,
once the names were looked up; that may have to be said again.

A number of a copy-up counts from the first of the mount. An answer to `log` begins with a record of how many are
`missed`, because they are kept no more.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import closing

import pyfuse3
import trio

from fuseunion.core.ops.live.whereabouts import Part
from fuseunion.engines.fuse.asking.facts import Facts
from fuseunion.engines.fuse.asking.sockets.adding import ALIVE, BUSY, GOING, Adding, forgotten_fields, tell_kernel
from fuseunion.engines.fuse.asking.sockets.control_socket import Asker, Order, Said
from fuseunion.engines.fuse.asking.watching.copy_up_log import CopyUp, path_of
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.serving.waiting.pace import Pace, in_steps
from fuseunion.linux.runtime import frames
from fuseunion.linux.runtime.frames import Record
from fuseunion.mounting.options import Options
from fuseunion.mounting.prepared import Prepared

_LARGEST_NUMBER = 1 << 62

_SHORTEST, _LONGEST = 100, 60_000
"""Milliseconds between two messages to who watches."""

_SHOWN = 50
"""How many inodes and copy-ups are in one message at most."""


class Orders:
    """The orders of one mount.

    Args:
        requests: those of the mount.
        facts: what is said of it.
        prepared, options: how it was made.
    """

    def __init__(self, requests: Requests, facts: Facts, prepared: Prepared, options: Options) -> None:
        self._requests = requests
        self._facts = facts
        self._adding = Adding(requests, facts, prepared, options)
        self._log = requests.copy_ups.log

    def by_name(self) -> Mapping[str, Order]:
        """What does each."""
        return {
            "add-lower": self._adding.begin,
            "add-lower-now": self._adding.finish,
            "log": self._tell_log,
            "refresh": self._refresh,
            "top": self._watch,
            "which": self._tell_where,
        }

    async def _watch(self, order: Record, _asker: Asker) -> AsyncGenerator[Said, None]:
        interval = min(max(_number(order, "milliseconds"), _SHORTEST), _LONGEST) / 1000
        number = max(self._log.count - _SHOWN, 0)
        with self._requests.busiest.watched() as most:
            while True:
                _, entries = self._log.since(number)
                number = self._log.count
                yield [
                    self._facts.now(),
                    *(self._busy_fields(*each) for each in most(_SHOWN)),
                    *map(copy_up_fields, entries[-_SHOWN:]),
                ]
                await trio.sleep(interval)

    def _busy_fields(self, number: int, count: int) -> list[tuple[str, str | bytes | float]]:
        try:
            path = path_of(self._requests.union.inode(number)) if number != pyfuse3.ROOT_INODE else b"."
        except OSError:
            path = b""  # it has gone, or is one that nobody understands
        return [("busy", count), ("inode", number), ("path", path)]

    async def _refresh(self, order: Record, _asker: Asker) -> AsyncGenerator[Said, None]:
        requests, directories = self._requests, 0
        pace, said = Pace(), time.monotonic()
        for path in order.get("path", ()):
            with closing(requests.union.refresh(os.fsencode(path), requests.copy_ups.is_under_way)) as steps:
                for forgotten in steps:
                    if forgotten is not None:
                        directories += forgotten.directory.ino in forgotten.inodes
                        requests.forget_layers()
                        tell_kernel(forgotten)
                        if forgotten.names or forgotten.files:
                            yield [forgotten_fields(forgotten)]
                            said = time.monotonic()
                    await pace.pause()
                    while True:
                        if time.monotonic() - said > ALIVE:
                            yield GOING
                            said = time.monotonic()
                        if not requests.workers.in_long_operation:
                            break
                        await trio.sleep(BUSY)
        yield [[("done", directories)]]

    async def _tell_where(self, order: Record, _asker: Asker) -> AsyncGenerator[Said, None]:
        for path in order.get("path", ()):
            try:
                found = await in_steps(self._requests.union.whereabouts(os.fsencode(path)))
            except OSError as error:
                yield [[("path", path), ("error", error.errno or errno.EIO)]]
                continue
            kind = found.inode.kind if found.inode is not None else 0
            copy_up = self._log.last_of(found.inode.ino) if found.inode is not None else None
            yield [
                [("path", path), ("kind", kind), ("copied_up", int(found.copied_up))],
                *map(_part_fields, found.parts),
                *([copy_up_fields(copy_up)] if copy_up is not None else ()),
            ]

    async def _tell_log(self, order: Record, _asker: Asker) -> AsyncGenerator[Said, None]:
        number = _number(order, "since")
        follows = "follow" in order
        while True:
            missed, entries = self._log.since(number)
            yield [[("missed", missed)], *map(copy_up_fields, entries)]
            if not follows:
                return
            number = entries[-1].number if entries else number
            await self._log.more(number)


def _part_fields(part: Part) -> list[tuple[str, str | bytes | float]]:
    fields: list[tuple[str, str | bytes | float]] = [
        ("role", part.role.value),
        ("upper", int(part.upper)),
        ("layer", part.layer),
        ("kind", part.kind),
    ]
    return fields if part.path is None else [*fields, ("path", part.path)]


def _number(order: Record, name: str) -> int:
    """Raises ValueError for what is no number."""
    text = frames.first(order, name, "0")
    if not text.isdecimal() or int(text) > _LARGEST_NUMBER:
        raise ValueError(f"{name} is a number")
    return int(text)


def copy_up_fields(entry: CopyUp) -> list[tuple[str, str | bytes | float]]:
    """A copy-up as a record."""
    return [
        ("number", entry.number),
        ("when", f"{entry.when:.6f}"),
        ("path", entry.path),
        ("size", entry.size),
        ("seconds", f"{entry.seconds:.6f}"),
        ("request", entry.cause.request),
        ("pid", entry.cause.pid),
        ("program", entry.program.name),
        ("executable", entry.program.path),
    ]
