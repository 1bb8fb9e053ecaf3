"""Waiting until the kernel has nothing left that it wanted from the daemon.

syncfs(2) on a FUSE mount begins to write the dirty pages of mapped files, and returns while most of it waits in the
kernel: of writeback and readahead only a dozen requests are given out at a time (fs/fuse/dev.c flush_bg_queue), each
answer lets the next one through. So the question that a command asks after its syncfs overtakes them.

Nothing is left when /dev/fuse has no request and no handler is at work. A handler that does not answer at once waits
for a thread, for another handler that does, or is between two steps of a long operation. One look is not enough: when a
thread has just ended, its handler is still to run.
"""

from __future__ import annotations

import errno
import select

import trio

from fuseunion.engines.fuse.serving.waiting.workers import Workers
from fuseunion.linux.os_error import os_error

_LOOKS = 2
_PAUSE = 0.001
_PATIENCE = 10.0
"""Seconds; a mount that is used without a pause by several programs may never be found at rest."""


async def settle(device: int, workers: Workers) -> None:
    """Return when everything is answered that the kernel had queued when this was called.

    Args:
        device: the /dev/fuse descriptor.
        workers: what handlers wait for.
    Raises:
        OSError: EBUSY, when the mount does not come to rest.
    """
    poll = select.poll()
    poll.register(device, select.POLLIN)
    quiet = 0
    with trio.move_on_after(_PATIENCE):
        while quiet < _LOOKS:
            await trio.sleep(_PAUSE)
            at_rest = workers.at_rest and not poll.poll(0)
            quiet = quiet + 1 if at_rest else 0
        return
    raise os_error(errno.EBUSY)
