"""What a user is told of a mount that cannot be taken away because it is in use."""

from __future__ import annotations

from fuseunion.engines.engine import LiveMount
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import mountinfo
from fuseunion.linux.holders import Holder


def busy(live: LiveMount, holders: list[Holder]) -> UserError:
    """The error that names the mounts below and the processes that use it."""
    below = [mount.target for mount in mountinfo.mounts() if mount.target.startswith(f"{live.path}/")]
    reasons = [f"mounted below: {', '.join(below)}"] if below else []
    if holders:
        reasons.append(f"used by {', '.join(map(str, holders))}")
    why = "; ".join(reasons) or "used by a process that you may not see"
    return UserError(f"'{live.given}' is busy: {why}; end that and try again, or use --lazy", ExitCode.BUSY)
