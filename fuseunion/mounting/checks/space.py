"""An upper without space for a work directory: whether it may be shown read-only.

Overlayfs does so (fs/overlayfs/super.c ovl_make_workdir, ovl_workdir_create). Here a work directory may hold what
decides what the upper shows: the hard-link index, and the ownership database. Both are used by those who write. So with
one of them the mount is refused.
"""

from __future__ import annotations

import errno
import os

from fuseunion.core.ownership.store_choice import has_database
from fuseunion.errors import ExitCode, UserError


def is_lacking(error: OSError) -> bool:
    """Whether something could not be made for want of space, or beyond a quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def refuse_if_needed(error: OSError, upper: str, work: str, work_fd: int) -> None:
    """Refuse an upper that cannot be shown without its work directory.

    Args:
        error: what went wrong in making the work directory.
        upper: for the message.
        work: for the message.
        work_fd: of the work directory.

    Raises:
        UserError: LAYERS, for want of space only.
        OSError: the work directory cannot be read.
    """
    if not is_lacking(error):
        return
    needed = "fuseunion.db" if has_database(work_fd) else "links" if _has_index(work_fd) else None
    if needed is not None:
        raise UserError(
            f"upper '{upper}' is on a full filesystem ({error.strerror}), and cannot be shown read-only, because "
            f"'{needed}' in the work directory '{work}' belongs to what it shows; make space first",
            ExitCode.LAYERS,
        ) from None


def _has_index(work_fd: int) -> bool:
    try:
        fd = os.open("links", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work_fd)
    except FileNotFoundError:
        return False
    try:
        return bool(os.listdir(fd))
    finally:
        os.close(fd)
