"""The overlay mounts of ours, and what the kernel says of them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from fuseunion.engines.kernel import over_images, recognise
from fuseunion.engines.status import State, Status
from fuseunion.linux import mountinfo, namespaces
from fuseunion.linux.mountinfo import Mount
from fuseunion.linux.proc import processes
from fuseunion.mounting.options import EngineChoice
from fuseunion.mounting.options.grammar import split_unescaped, unescape

_SAID = ("lowerdir", "upperdir", "workdir", "userxattr")
"""Words that are said otherwise, or follow from the namespace."""


def statuses() -> Iterator[Status]:
    """Each mount once: those that this process sees, then those of this user's other mount namespaces."""
    seen = set()
    # In the first user namespace only root mounts overlays, and whoever sees them is not who made them.
    if os.geteuid() == 0 or not namespaces.in_first_user_namespace():
        for mount in mountinfo.mounts():
            if recognise.is_ours(mount):
                seen.add(mount.device)
                yield _status(mount, None)
    for pid in processes.mount_namespaces():
        try:
            mounts = [mount for mount in mountinfo.mounts(pid) if recognise.is_ours(mount)]
        except OSError:
            continue  # ended meanwhile
        for mount in mounts:
            if mount.device not in seen and os.geteuid() in (0, _owner(pid)):
                seen.add(mount.device)
                yield _status(mount, pid)


def _owner(pid: int) -> int | None:
    """Who made the mounts of a process's namespace: its user, unless that sees the machine's own mounts."""
    try:
        return None if namespaces.maps_every_id("uid", pid) else os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _status(mount: Mount, namespace: int | None) -> Status:
    words = [os.fsdecode(word) for word in mount.raw_options.split(b",")]
    upper, work = (mount.option(name) for name in ("upperdir", "workdir"))
    return Status(
        EngineChoice.KERNEL,
        mount.target,
        State.LIVE,
        namespace=namespace,
        lowers=tuple(
            over_images.shown(unescape(lower)) for lower in split_unescaped(mount.option("lowerdir") or "", ":")
        ),
        upper=over_images.shown(unescape(upper)) if upper else None,
        work=over_images.shown(unescape(work)) if work else None,
        images=over_images.said_of(mount),
        options=tuple(word for word in words if word.partition("=")[0] not in _SAID and word != "rw"),
    )
