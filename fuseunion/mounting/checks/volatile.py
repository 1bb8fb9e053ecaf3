"""The mark that a volatile mount leaves in its work directory: nothing was synced while it was there.

WORK/work/incompat/volatile is the kernel's own mark (fs/overlayfs/super.c, ovl_create_volatile_dirty), so that
neither program mounts an upper that the other may have lost writes of. A boot id is stored beside: within one boot
nothing can have been lost, since the page cache is still there, and the upper may be mounted again. The kernel's mark
holds no boot id and is refused like a mark of an earlier boot. containers/storage removes the mark itself before each
mount (drivers/overlay/overlay.go).
"""

import contextlib
import os
from collections.abc import Sequence

from fuseunion.core.disk.work import open_inner
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import owned

_BELOW_INNER = ("incompat", "volatile")
_BOOT_ID = "boot_id"
_BOOT_ID_LIMIT = 64
"""Bytes: it has 37."""


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def refuse_older(work_fd: int, label: str) -> None:
    """Refuse a work directory marked in another boot, or by the kernel.

    Raises:
        UserError: LAYERS.
    """
    try:
        inner = open_inner(work_fd)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"work directory '{label}' cannot be used: '{label}/work' in it is no directory of yours "
            f"({error.strerror}); remove that, or give another work directory",
            ExitCode.LAYERS,
        ) from None
    try:
        mark_fd = _open_below(inner, _BELOW_INNER)
    except (FileNotFoundError, NotADirectoryError):
        os.close(inner)
        return
    except OSError:
        mark_fd = -1  # something is there that is not ours: as good as another boot's
    try:
        if mark_fd >= 0 and owned.read_file(_BOOT_ID, mark_fd, _BOOT_ID_LIMIT).strip() == _boot_id().encode():
            return
    except OSError:
        pass  # not ours, or unreadable: as good as another boot's
    finally:
        for fd in (inner, mark_fd):
            if fd >= 0:
                os.close(fd)
    raise UserError(
        f"work directory '{label}': the upper was last mounted volatile and not synced before the machine stopped, so "
        f"files may be damaged; discard the upper, or if you trust it remove '{label}/work/incompat/volatile'",
        ExitCode.LAYERS,
    )


def _open_below(fd: int, names: Sequence[str], *, make: bool = False) -> int:
    """A descriptor of a directory below another, one name at a time, of which none may be a link.

    Args:
        make: make what is missing.
    Raises:
        OSError: ENOENT; ENOTDIR for a link.
    """
    current = os.dup(fd)
    for name in names:
        try:
            if make:
                try:
                    os.mkdir(name, 0o700, dir_fd=current)
                except FileExistsError:
                    pass  # of an earlier mount
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
        finally:
            os.close(current)
        current = below
    return current


def is_marked(work_fd: int) -> bool:
    """Whether a mount left its mark, which means that what it wrote may not be on disk."""
    try:
        inner = open_inner(work_fd)
    except OSError:
        return False
    try:
        os.close(_open_below(inner, _BELOW_INNER))
    except OSError:
        return False
    finally:
        os.close(inner)
    return True


def mark(work_fd: int) -> None:
    """Leave the mark.

    Raises:
        OSError: the work directory cannot be written.
    """
    inner = open_inner(work_fd)
    try:
        try:
            _mark(inner)
        except OSError:
            # A mark without a boot id would be taken for the kernel's.
            for depth in range(len(_BELOW_INNER) - 1, -1, -1):
                with contextlib.suppress(OSError):
                    _remove_in(inner, _BELOW_INNER[:depth], _BELOW_INNER[depth], is_file=False)
            raise
    finally:
        os.close(inner)


def _mark(inner: int) -> None:
    mark_fd = _open_below(inner, _BELOW_INNER, make=True)
    try:
        with open(owned.new_file(_BOOT_ID, mark_fd), "w") as file:
            file.write(_boot_id() + "\n")
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(_BOOT_ID, dir_fd=mark_fd)
        raise
    finally:
        os.close(mark_fd)


def clear(work_fd: int) -> None:
    """Remove WORK/work with a mark of this program in it; what else is there stays."""
    _remove_mark(work_fd, _BOOT_ID)


def clear_of_kernel(work_fd: int) -> None:
    """As `clear`, with a mark of the kernel, which a mount left that ended in order."""
    _remove_mark(work_fd, "dirty")


def _remove_mark(work_fd: int, content: str) -> None:
    # Never marked, not empty, or not ours: then it is not ours to remove.
    try:
        inner = open_inner(work_fd)
    except OSError:
        return
    try:
        for depth in range(len(_BELOW_INNER), -1, -1):
            _remove_in(inner, _BELOW_INNER[:depth], (*_BELOW_INNER, content)[depth], is_file=depth == len(_BELOW_INNER))
        os.rmdir("work", dir_fd=work_fd)
    except OSError:
        pass
    finally:
        os.close(inner)


def _remove_in(inner: int, way: Sequence[str], name: str, *, is_file: bool) -> None:
    """Remove one name below WORK/work; what is not there is removed already. Raises OSError as unlink(2)."""
    try:
        fd = _open_below(inner, way)
    except FileNotFoundError:
        return
    try:
        (os.unlink if is_file else os.rmdir)(name, dir_fd=fd)
    except FileNotFoundError:
        pass  # as it mostly is
    finally:
        os.close(fd)
