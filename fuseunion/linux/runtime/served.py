"""Where a process has its mount, for messages."""

from fuseunion.linux.mountinfo import mounts
from fuseunion.linux.proc import processes
from fuseunion.linux.runtime.answers import answers


def mounted_by(pid: int) -> str | None:
    """Where a process has its mount, as the kernel says, or else the process; None where neither tells."""
    served = processes.served_mounts(pid)
    try:
        seen = [mount.target for mount in mounts(pid) if mount.device in served]
    except OSError:
        seen = []  # ended meanwhile
    said = [] if seen else [answer.fields.get("merged", ["?"])[0] for answer in answers(pid=pid) if answer.fields]
    return next(iter((*seen, *said)), None)
