"""Giving back what the link index keeps of files that no name shows any more, while the mount is in use.

That goes through the lowers (core/ops/copy_up/unshown_links.py), so it waits until a removal of many files may be over,
is done in steps between the requests, and takes a small part of the time at most.
"""

from __future__ import annotations

import logging
import time

import trio

from fuseunion.core.union import Union
from fuseunion.engines.fuse.serving.waiting.pace import in_steps

_log = logging.getLogger("fuseunion.links")

_PATIENCE = 1.0
"""Seconds from the first suspicion."""

_REST = 4.0
"""How much longer than looking not looking is."""


async def tidy(union: Union) -> None:
    """Look whenever there is a reason to, until cancelled. A failure ends the looking, and never the mount."""
    try:
        await _tidy(union)
    except Exception:  # noqa: BLE001 - whatever it is, it is not worth a mount
        _log.exception("nobody looks any more for what no name shows")


async def _tidy(union: Union) -> None:
    reason = trio.Event()

    def noticed() -> None:
        reason.set()  # the one that is waited for now

    union.on_suspicion(noticed)
    while True:
        await reason.wait()
        reason = trio.Event()
        await trio.sleep(_PATIENCE)
        since = time.monotonic()
        ended = await in_steps(union.drop_unshown())
        if ended:
            _log.info("%d files that no name shows any more have gone from the link index", ended)
        await trio.sleep(_REST * (time.monotonic() - since))
