"""A lower is added to a mount that is in use, and what the kernel remembers of other names is told.

The new stacks come into force in one piece (core/ops/live/addition.py): between two requests. What is remembered by the
adapter, and shared with the extension, is taken back in the same piece. The kernel learns of it after that: attributes
and listings from here, names from the command, as it ends.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import closing, suppress

import pyfuse3
import trio

from fuseunion.core.ops.live.refresh import Forgotten
from fuseunion.engines.fuse.asking.facts import Facts
from fuseunion.engines.fuse.asking.sockets.control_socket import Said
from fuseunion.engines.fuse.asking.watching.copy_up_log import path_of
from fuseunion.engines.fuse.serving.pace import Pace
from fuseunion.engines.fuse.serving.requests import Requests
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

    async def add(self, order: Record, given: list[int]) -> AsyncGenerator[Said, None]:
        """Add one (orders.py)."""
        path = frames.first(order, "path")
        if not given or not path:
            raise ValueError("a directory has to come along")
        requests, union = self._requests, self._requests.union
        # Its filesystem may answer late, or be one that asks for something here.
        found = await requests.workers.read(added.Found, given[-1])
        try:
            given.pop()
            layer = added.open_layer(found, path, union, self._prepared, self._options)
        except UserError as refusal:
            raise ValueError(refusal.message) from None
        try:
            addition = union.addition(layer)
        except BaseException:
            layer.close()
            raise
        with closing(addition):
            pace, said = Pace(), time.monotonic()
            while True:
                with closing(addition.look()) as steps:
                    for _ in steps:
                        await pace.pause()
                        if time.monotonic() - said > ALIVE:
                            yield GOING
                            said = time.monotonic()
                if not requests.workers.in_long_operation:
                    break
                await trio.sleep(BUSY)
            # From here on in one piece.
            requests.forget_layers()
            changed = addition.finish()
            for forgotten in changed:
                tell_kernel(forgotten)
            self._prepared.add_lower(Opened(layer.root_fd, path), [lower.root_fd for lower in union.lowers])
            self._facts.lowers_changed()
            _log.info("lower '%s' was added on top of the others", path)
        for forgotten in changed:
            if forgotten.names:
                yield [forgotten_fields(forgotten)]
                await trio.lowlevel.checkpoint()
        yield [[("done", len(changed))]]


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
