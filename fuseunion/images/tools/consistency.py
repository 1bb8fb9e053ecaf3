"""Whether what lies in an image is something that a union can be mounted on.

e2fsck knows that a filesystem is one; this is about what is in it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator


def of_root(root_fd: int) -> Iterator[str]:
    """What is wrong, or worth knowing, one line each.

    Args:
        root_fd: of the root of the image.
    """
    upper, work = _status(root_fd, "upper"), _status(root_fd, "work")
    for name, st in (("upper", upper), ("work", work)):
        if st is None:
            yield f"{name}/ is missing; a mount that writes makes it"
        elif not stat.S_ISDIR(st.st_mode):
            yield f"{name} is no directory; nothing can be mounted on this image"
    if upper and work and upper.st_uid != work.st_uid:
        yield (f"upper/ belongs to {upper.st_uid} and work/ to {work.st_uid}; fuseunion image chown gives both to one")


def _status(root_fd: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=root_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
