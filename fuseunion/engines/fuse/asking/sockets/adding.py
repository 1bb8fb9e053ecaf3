"""A lower is added to a mount that is in use.

The new stacks come into force in one piece (core/ops/live/addition.py), between two requests. For programs that is one
moment too, if the kernel remembers nothing then that is not true after it. Attributes and listings it drops when it is
told to, which waits for nobody. Names it does not (docs/decisions.md), so it is brought to remember none that changes
before that:

    begin     from now on the kernel may not remember what it is told of names, and which these are is written down
              (Requests.renewed); then the command is told which names may change, and looks them up again
    finish    if every name that will lead to something else was told of since then: the new stacks, and the kernel is
              told of attributes and listings; else the command is told which were not

So what is remembered when it is done was told after it, or is looked up again before it is used. Who is killed in
between leaves the mount as it was. A name that was not there before, and is afterwards, does not have to be looked up
again by all means: who does not see it yet makes nothing in its place (EEXIST), and loses nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing, contextmanager, suppress
from typing import NamedTuple

import pyfuse3
import trio

from fuseunion.core.disk.layer import Layer
from fuseunion.core.ops.live.addition import Addition
from fuseunion.core.ops.live.refresh import Forgotten
from fuseunion.engines.fuse.asking.facts import Facts
from fuseunion.engines.fuse.asking.sockets.control_socket import Asker, Said
from fuseunion.engines.fuse.asking.watching.copy_up_log import path_of
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.serving.waiting.pace import Pace
from fuseunion.errors import UserError
from fuseunion.linux.runtime import frames
from fuseunion.linux.runtime.frames import Record
from fuseunion.mounting.options import Options
from fuseunion.mounting.prepared import Opened, Prepared
from fuseunion.mounting.sources import added

_log = logging.getLogger("fuseunion.lowers")

GOING: Said = [[("going", "on")]]

ALIVE = 1.0
"""Seconds after which who waits is told that something is done."""

BUSY = 0.01
"""Seconds between two looks whether a long operation has ended."""

_ROUNDS = 8
"""So many times the command is asked to look up names again."""


class _Begun(NamedTuple):
    """What is being added, and for whom."""

    asker: Asker
    layer: Layer
    addition: Addition
    rounds: list[None]


class Adding:
    """What adds lowers to one mount.

    Args:
        requests: those of the mount.
        facts: what is said of it.
        prepared, options: how it was made.
    """

    def __init__(self, requests: Requests, facts: Facts, prepared: Prepared, options: Options) -> None:
        self._requests = requests
        self._facts = facts
        self._prepared = prepared
        self._options = options
        self._begun: _Begun | None = None

    async def begin(self, order: Record, asker: Asker) -> AsyncGenerator[Said, None]:
        """Get ready to add one (orders.py)."""
        path = frames.first(order, "path")
        if not asker.given or not path:
            raise ValueError("a directory has to come along")
        requests, union = self._requests, self._requests.union
        # Its filesystem may answer late, or never, or be one that asks for something here.
        found = await trio.to_thread.run_sync(added.look, os.dup(asker.given[-1]), abandon_on_cancel=True)
        if requests.renewed is not None:
            raise ValueError("another lower is being added; try again")
        try:
            layer = added.open_layer(asker.given.pop(), found, path, union, self._prepared, self._options)
        except UserError as refusal:
            raise ValueError(refusal.message) from None
        try:
            addition = union.addition(layer)
        except BaseException:
            layer.close()
            raise
        begun = self._begun = _Begun(asker, layer, addition, [])
        asker.at_end.callback(self._end, begun)
        renewed: set[tuple[int, bytes]] = set()
        requests.renewed = renewed
        requests.forget_layers()
        before = set(requests.listings)
        with self._ended_by_errors(begun):
            async for message in self._looked(begun):
                yield message
            while before & requests.listings:
                await trio.sleep(BUSY)
            for forgotten in addition.plan(renewed).names:
                yield [forgotten_fields(forgotten)]
            yield [[("ready", "")]]

    async def finish(self, _order: Record, asker: Asker) -> AsyncGenerator[Said, None]:
        """Add it (orders.py)."""
        begun, requests, said = self._begun, self._requests, time.monotonic()
        if begun is None or begun.asker is not asker or requests.renewed is None:
            raise ValueError("nothing is being added")
        with self._ended_by_errors(begun):
            while True:
                async for message in self._looked(begun):
                    yield message
                if not requests.workers.in_long_operation:
                    break
                if time.monotonic() - said > ALIVE:
                    yield GOING
                    said = time.monotonic()
                await trio.sleep(BUSY)
            # From here on in one piece.
            plan = begun.addition.plan(requests.renewed)
            if plan.going:
                begun.rounds.append(None)
                _refuse_endless(begun.rounds, plan.names[0])
                for forgotten in plan.names:
                    yield [forgotten_fields(forgotten)]
                yield [[("ready", "")]]
                return
            requests.forget_layers()
            changed = begun.addition.finish(plan)
            for forgotten in changed:
                tell_kernel(forgotten)
            requests.ahead.begin()
            self._tell(begun.layer)
            self._end(begun)
        yield [[("done", len(changed))]]

    def _tell(self, layer: Layer) -> None:
        """Say that it is there."""
        lowers = [lower.root_fd for lower in self._requests.union.lowers]
        self._prepared.add_lower(Opened(layer.root_fd, layer.label), lowers)
        self._requests.union.root.stale()  # the upper remembers it
        self._facts.lowers_changed()
        _log.info("lower '%s' was added on top of the others", layer.label)

    @contextmanager
    def _ended_by_errors(self, begun: _Begun) -> Iterator[None]:
        """What is refused, or given up, in the block is not added."""
        try:
            yield
        except BaseException:
            self._end(begun)
            raise

    def _end(self, begun: _Begun) -> None:
        """It was added, or will not be: the kernel may remember names again."""
        if self._begun is begun:
            self._begun = None
            self._requests.renewed = None
            begun.addition.close()

    async def _looked(self, begun: _Begun) -> AsyncGenerator[Said, None]:
        pace, said = Pace(), time.monotonic()
        with closing(begun.addition.look()) as steps:
            for _ in steps:
                await pace.pause()
                if time.monotonic() - said > ALIVE:
                    yield GOING
                    said = time.monotonic()


def _refuse_endless(rounds: list[None], first: Forgotten) -> None:
    """Raises ValueError when the command was asked for names too often."""
    if len(rounds) > _ROUNDS:
        path = os.path.join(path_of(first.directory), first.names[0])
        raise ValueError(f"'{os.fsdecode(path)}' is looked up all the time, or where this user may not")


def tell_kernel(forgotten: Forgotten) -> None:
    """Tell it of attributes and listings that are others.

    Neither of these waits for a request that waits for us: of files no page is touched, and no page of a directory is
    locked for longer than it takes to copy names into it (fs/fuse/inode.c fuse_reverse_inval_inode, fs/fuse/readdir.c).
    """
    directory = forgotten.directory.ino
    for number in forgotten.inodes:
        with suppress(OSError):  # it does not know it
            pyfuse3.invalidate_inode(pyfuse3.InodeT(number), attr_only=number != directory)


def forgotten_fields(forgotten: Forgotten) -> list[tuple[str, str | bytes | float]]:
    """What a command is told of one directory (orders.py)."""
    return [
        ("directory", path_of(forgotten.directory)),
        *(("name", name) for name in forgotten.names),
        *(("file", name) for name in forgotten.files),
    ]
