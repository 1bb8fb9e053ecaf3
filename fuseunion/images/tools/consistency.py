"""Whether what lies in an image is something that a union can be mounted on, and what `fuseunion check` finds in it.

e2fsck knows that a filesystem is one; this is about what is in it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack

from fuseunion.offline.upkeep.checking import check
from fuseunion.offline.upkeep.checking.findings import Severity
from fuseunion.offline.upkeep.holding import HeldUpper

UPPER, WORK = "upper", "work"


def of_root(root_fd: int) -> Iterator[str]:
    """What is wrong, or worth knowing, one line each.

    Args:
        root_fd: of the root of the image, which nobody else uses.

    Raises:
        UserError: LAYERS; OSError: EIO and the like.
    """
    upper, work = _status(root_fd, UPPER), _status(root_fd, WORK)
    for name, st in ((UPPER, upper), (WORK, work)):
        if st is None:
            yield f"{name}/ is missing; a mount that writes makes it"
        elif not stat.S_ISDIR(st.st_mode):
            yield f"{name} is no directory; nothing can be mounted on this image"
    if upper and work and upper.st_uid != work.st_uid:
        yield (f"upper/ belongs to {upper.st_uid} and work/ to {work.st_uid}; fuseunion image chown gives both to one")
    if upper and stat.S_ISDIR(upper.st_mode):
        yield from _of_upper(root_fd, with_work=work is not None and stat.S_ISDIR(work.st_mode))


def _of_upper(root_fd: int, *, with_work: bool) -> Iterator[str]:
    """What can be wrong with any upper; its lowers are not known."""
    with ExitStack() as stack:
        fds = []
        for name in (UPPER, WORK) if with_work else (UPPER,):
            fds.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd))
            stack.callback(os.close, fds[-1])
        held = HeldUpper(fds[0], UPPER, fds[1] if with_work else None, WORK, default_work=False)
        for finding, *_ in check.look(held, ()):
            if finding.severity is not Severity.NOTE:
                place = os.path.join(WORK if finding.in_work else UPPER, os.fsdecode(finding.path))
                yield f"{finding.severity.value}: '{place}' {finding.text}"


def _status(root_fd: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=root_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
