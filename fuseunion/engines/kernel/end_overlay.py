"""Writing out an overlay mount, taking it away, and leaving its work directory in order."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import ExitStack

from fuseunion.core.disk.work import WorkDirectory
from fuseunion.engines.kernel import over_images, work_mark
from fuseunion.engines.live import BusyError, LiveMount
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import owned, syscalls
from fuseunion.linux.mountinfo import Mount
from fuseunion.mounting.checks import volatile
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
        UserError: BUSY where images are used in another mount namespace; FAILURE where it cannot be unmounted, or
            cannot be written out; with `lazy` it is taken away all the same, else it is still mounted.
    """
    assert live.entry is not None, "an overlay has a line in mountinfo"
    flags = syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0)
    lost: OSError | None = None
    try:
        _syncfs(live.path)
    except OSError as error:
        if not lazy:
            raise UserError(
                f"'{live.given}' cannot be written to disk: {error.strerror}; it is still mounted: see to its disk and "
                f"try again, or take it away as it is with: fuseunion umount --lazy '{live.given}'",
                ExitCode.FAILURE,
            ) from None
        lost = error
    images = over_images.images_of(live.entry)
    try:
        syscalls.umount2(os.fsencode(live.path), flags)
    except OSError as error:
        over_images.let_go(images)
        if error.errno == errno.EBUSY:
            raise BusyError from None
        raise UserError(f"cannot unmount '{live.given}': {error.strerror}", ExitCode.FAILURE) from None
    if lazy:
        over_images.let_go(images)
        if lost is not None:
            raise UserError(
                f"'{live.given}' is unmounted, but could not be written to disk: {lost.strerror}; what was changed "
                "last may be lost",
                ExitCode.FAILURE,
            )
        return
    over_images.finish(images, live)
    if not any(image.is_upper for image in images):
        _leave_in_order(live.entry)


def _syncfs(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(fd)
    finally:
        os.close(fd)


def _leave_in_order(entry: Mount) -> None:
    """Empty the work directory of a mount that has ended, and remove the default one.

    Unless it holds what must outlive the mount. Only the directory itself that was mounted is touched (work_mark.py),
    through its descriptor, and of it only what overlayfs leaves.
    """
    # The option string is shown as it was given to mount(2).
    upper, work = (unescape(entry.option(name) or "") for name in ("upperdir", "workdir"))
    if not work:
        return
    with ExitStack() as stack:
        try:
            upper_fd = owned.open_without_links(upper)
            stack.callback(os.close, upper_fd)
            fd = owned.open_directory(work, owners={os.fstat(upper_fd).st_uid})
            stack.callback(os.close, fd)
        except FileNotFoundError:
            return  # an ephemeral mount's, gone with it
        except OSError as error:
            _log.warning("the work directory '%s' stays as it is: %s", work, error.strerror)
            return
        if not work_mark.take(fd, upper_fd):
            _log.warning("'%s' stays as it is: it is not the work directory of the mount that has ended", work)
            return
        volatile.clear_of_kernel(fd)  # what is in UPPER is what was written (overlayfs.rst, "Volatile mount")
        WorkDirectory(os.dup(fd), work).close()
        if work == default_work_path(upper):
            _remove_default(fd, work)


def _remove_default(fd: int, work: str) -> None:
    for name in ("work", "index"):
        _remove_empty(name, fd)
    try:
        same = os.path.samestat(os.lstat(work), os.fstat(fd))
    except OSError:
        same = False
    if same:
        _remove_empty(work)


def _remove_empty(name: str, dir_fd: int | None = None) -> None:
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            _log.warning("cannot remove '%s': %s", name, error.strerror)
