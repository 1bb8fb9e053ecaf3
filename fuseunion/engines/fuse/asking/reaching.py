"""The daemon of a mount at a path, found and spoken to."""

from __future__ import annotations

from fuseunion.engines.fuse.asking import mounts
from fuseunion.engines.status import State, Status
from fuseunion.linux.runtime.conversation import Conversation


def reach(path: str) -> tuple[Status, Conversation | None] | None:
    """How the mount at a path is doing, and a conversation with its daemon.

    Args:
        path: absolute; where several are there, the one that is seen from here is meant.

    Returns:
        None where nothing of ours is there; no conversation where the daemon has no control socket, or does not answer.
    """
    found = [(status, control) for status, control in mounts.with_controls() if status.merged == path]
    if not found:
        return None
    status, control = min(found, key=lambda pair: pair[0].namespace is not None)
    if not control or status.state is not State.LIVE:
        return status, None
    try:
        return status, Conversation(control)
    except OSError:
        return status, None  # it has ended meanwhile, or is of an older version
