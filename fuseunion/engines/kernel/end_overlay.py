"""Writing out an overlay mount, taking it away, and leaving its work directory in order."""

from __future__ import annotations

import errno
import logging
import os

from fuseunion.core.disk.work import WorkDirectory
from fuseunion.engines.live import BusyError, LiveMount
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import syscalls
from fuseunion.linux.mountinfo import Mount
from fuseunion.mounting.options.grammar import unescape
from fuseunion.mounting.prepare import default_work_path

_log = logging.getLogger("fuseunion.kernel")

_VOLATILE = frozenset((b"volatile", b"fsync=volatile"))
"""How mountinfo shows it; the second on newer kernels."""


def write_out(live: LiveMount) -> None:
    """Put what was written to a mount on disk.

    Raises:
        OSError: what went wrong in writing, which means that something is lost.
    """
    _syncfs(live.path)
    assert live.entry is not None, "an overlay has a line in mountinfo"
    upper = unescape(live.entry.option("upperdir") or "")
    if upper and _VOLATILE & set(live.entry.raw_options.split(b",")):
        # syncfs(2) on such a mount does nothing (fs/overlayfs/super.c ovl_sync_fs).
        _syncfs(upper)


def stop(live: LiveMount, *, lazy: bool) -> None:
    """Write out and unmount, then remove the default work directory.

    Args:
        live: an overlay mount of ours.
        lazy: take the mount out of the tree at once; its work directory is still used, and stays.
    Raises:
        BusyError: it is used.
        UserError: FAILURE where it cannot be unmounted.
        OSError: what went wrong in writing; it is still mounted.
    """
    assert live.entry is not None, "an overlay has a line in mountinfo"
    flags = syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0)
    _syncfs(live.path)
    try:
        syscalls.umount2(os.fsencode(live.path), flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise BusyError from None
        raise UserError(f"cannot unmount '{live.given}': {error.strerror}", ExitCode.FAILURE) from None
    if not lazy:
        _leave_in_order(live.entry)


def _syncfs(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(fd)
    finally:
        os.close(fd)


def _leave_in_order(entry: Mount) -> None:
    """Remove the default work directory of a mount that has ended, unless it holds what must outlive it."""
    # The option string is shown as it was given to mount(2).
    upper, work = (unescape(entry.option(name) or "") for name in ("upperdir", "workdir"))
    if not work:
        return
    try:
        fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return  # an ephemeral mount's, gone with it
    _remove_volatile(f"{work}/work/incompat/volatile")
    WorkDirectory(fd, work).close()
    if work == default_work_path(upper):
        for path in (f"{work}/work", f"{work}/index", work):
            try:
                os.rmdir(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                    _log.warning("cannot remove '%s': %s", path, error.strerror)


def _remove_volatile(mark: str) -> None:
    """The mount ended in order: what is in UPPER is what was written (overlayfs.rst, "Volatile mount")."""
    try:
        os.chmod(os.path.dirname(os.path.dirname(mark)), 0o700)
        os.unlink(f"{mark}/dirty")
        os.rmdir(mark)
        os.rmdir(os.path.dirname(mark))
    except OSError:
        pass  # the mount was not volatile
