"""Keeping two live mounts off one upper or work directory.

Two writers with their own idea of what is in a directory destroy it, so each mount holds flock(2) on both for as long
as it lives. The lock belongs to the open descriptor: the daemon inherits it over fork, and it goes with the daemon
however that ends, so that no stale lock is possible. A daemon whose mount was just unmounted needs a moment to
finish; so a taken lock is tried again for a while before it counts as taken.

The kernel's overlayfs takes no flock. Its live mounts are found in mountinfo by their upperdir= and workdir=.
"""

import errno
import fcntl
import logging
import os
import time

from fuseunion.errors import ExitCode, UserError
from fuseunion.linux.mountinfo import mounts
from fuseunion.mounting.checks.placement import Place
from fuseunion.mounting.options.grammar import unescape

_log = logging.getLogger("fuseunion.in_use")

PATIENCE = 1.5
"""Seconds that an unmounted daemon may take to let go of its directories."""

_PAUSE = 0.01

_NO_LOCKS_HERE = (errno.ENOLCK, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS)
"""NFS turns flock into a record lock, which a directory cannot have (flock(2), NOTES)."""


def lock(place: Place, fd: int, patience: float = PATIENCE) -> int:
    """Lock a directory for the life of the returned descriptor, a duplicate of `fd`.

    Raises:
        UserError: BUSY, when another mount holds it.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise _in_use(place, "fuseunion") from None
            time.sleep(_PAUSE)
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                raise
            _log.warning("%s cannot be locked here (%s): nothing else may mount it", place.path, error.strerror)
            break
    return os.dup(fd)


def refuse_kernel_overlays(*places: Place) -> None:
    """Refuse directories that a live kernel overlay writes to.

    Raises:
        UserError: BUSY.
    """
    keys = {place.key: place for place in places if place.key is not None}
    for path in _overlay_directories():
        try:
            st = os.stat(path)
        except OSError:
            continue  # a path of another namespace, or hidden by now
        if (st.st_dev, st.st_ino) in keys:
            raise _in_use(keys[st.st_dev, st.st_ino], "kernel overlayfs")


def _overlay_directories() -> list[str]:
    try:
        overlays = [mount for mount in mounts() if mount.fstype == "overlay"]
    except OSError:
        return []  # without /proc there is nothing to look in
    given = [overlay.option(name) for overlay in overlays for name in ("upperdir", "workdir")]
    return [unescape(path) for path in given if path]


def _in_use(place: Place, by: str) -> UserError:
    return UserError(
        f"{place.part.value} '{place.given}' is in use by another live {by} mount; unmount that one or use another",
        ExitCode.BUSY,
    )
