"""A mount that an engine has recognised as its own, and what a user is told when nothing can be done with it."""

from __future__ import annotations

from typing import NamedTuple

from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import mountinfo
from fuseunion.linux.holders import Holder


class LiveMount(NamedTuple):
    """A mount, or what stands for one, that an engine has recognised as its own.

    Attributes:
        given: the path as the user wrote it, for messages.
        path: absolute, without symbolic links.
        entry: its line in mountinfo; None for what shows the union without a mount.
    """

    given: str
    path: str
    entry: mountinfo.Mount | None


def busy(live: LiveMount, holders: list[Holder]) -> UserError:
    """The error that names the mounts below and the processes that use it."""
    below = [mount.target for mount in mountinfo.mounts() if mount.target.startswith(f"{live.path}/")]
    reasons = [f"mounted below: {', '.join(below)}"] if below else []
    if holders:
        reasons.append(f"used by {', '.join(map(str, holders))}")
    why = "; ".join(reasons) or "used by a process that you may not see"
    return UserError(f"'{live.given}' is busy: {why}; end that and try again, or use --lazy", ExitCode.BUSY)


def cannot_write_out(live: LiveMount, error: OSError) -> UserError:
    """The error of a mount whose changes cannot be put on disk."""
    return UserError(f"'{live.given}' cannot be written to disk: {error.strerror}", ExitCode.FAILURE)
