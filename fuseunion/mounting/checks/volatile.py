"""The mark that a volatile mount leaves in its work directory: nothing was synced while it was there.

WORK/work/incompat/volatile is the kernel's own mark (fs/overlayfs/super.c, ovl_create_volatile_dirty), so that
neither program mounts an upper that the other may have lost writes of. A boot id is stored beside: within one boot
nothing can have been lost, since the page cache is still there, and the upper may be mounted again. The kernel's mark
holds no boot id and is refused like a mark of an earlier boot. containers/storage removes the mark itself before each
mount (drivers/overlay/overlay.go).
"""

import contextlib
import os

from fuseunion.errors import ExitCode, UserError

_WORK = "work"
MARK = f"{_WORK}/incompat/volatile"
_BOOT_ID = "boot_id"


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def refuse_older(work_fd: int, label: str) -> None:
    """Refuse a work directory marked in another boot, or by the kernel.

    Raises:
        UserError: LAYERS.
    """
    try:
        _make_searchable(work_fd)
        os.stat(MARK, dir_fd=work_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        fd = os.open(f"{MARK}/{_BOOT_ID}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work_fd)
        with open(fd) as file:
            if file.read(64).strip() == _boot_id():
                return
    except (OSError, UnicodeDecodeError):
        pass  # not ours, or unreadable: as good as another boot's
    raise UserError(
        f"work directory '{label}': the upper was last mounted volatile and not synced before the machine stopped, so "
        f"files may be damaged; discard the upper, or if you trust it remove '{label}/{MARK}'",
        ExitCode.LAYERS,
    )


def _make_searchable(work_fd: int) -> None:
    """The kernel leaves WORK/work with mode 000, which an ordinary owner cannot look into."""
    fd = os.open(_WORK, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work_fd)
    try:
        if os.fstat(fd).st_mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
    finally:
        os.close(fd)


def mark(work_fd: int) -> None:
    """Leave the mark.

    Raises:
        OSError: the work directory cannot be written.
    """
    path = ""
    for name in MARK.split("/"):
        path = f"{path}/{name}" if path else name
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700, dir_fd=work_fd)
    fd = os.open(f"{MARK}/{_BOOT_ID}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=work_fd)
    with open(fd, "w") as file:
        file.write(_boot_id() + "\n")


def clear(work_fd: int) -> None:
    """Remove WORK/work with a mark of this program in it; what else is there stays."""
    with contextlib.suppress(OSError):
        os.unlink(f"{MARK}/{_BOOT_ID}", dir_fd=work_fd)
    path = MARK
    while path:
        try:
            os.rmdir(path, dir_fd=work_fd)
        except FileNotFoundError:
            pass  # never marked
        except OSError:
            return  # not empty: not ours to remove
        path = os.path.dirname(path)
