"""The layers of a ranch, reachable through STATE/lower while MERGED may stand over them.

With mounts each lower is bound there and made read-only, so that nothing that is written through a link can reach it;
that is also what makes a ranch in place possible, where MERGED is the lower itself. Without mounts a link leads there.
"""

from __future__ import annotations

import errno
import os

from fuseunion.engines.ranch.record.record import FARM, MODE, Mode, Ranch
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import mountinfo, syscalls

UPPER = "upper"

# statvfs(3) f_flag to mount(2) flags: a user namespace may not drop what the mount has (mount_namespaces(7)).
_KEPT = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}


def put(ranch: Ranch) -> None:
    """Make every layer reachable; what is there already stays.

    Raises:
        PermissionError: mounts are not allowed here.
        OSError: of mount(2) and symlink(2).
    """
    record = ranch.record
    (ranch.inside / "lower").mkdir(exist_ok=True)
    (ranch.inside / "lower").chmod(MODE)
    layers: list[tuple[str, str]] = [(str(number), path) for number, path in enumerate(record.lowers)]
    if record.upper is not None:
        layers.append((UPPER, record.upper))
    for label, path in layers:
        place = _inside(ranch, label)
        if record.mode is Mode.PLAIN or label == UPPER:
            try:
                os.symlink(path, place)
            except FileExistsError:
                pass  # made by an interrupted build
            continue
        os.makedirs(place, mode=0o700, exist_ok=True)
        if mountinfo.mount_at(ranch.aside(label)) is None:
            _bind_read_only(path, place)


def _inside(ranch: Ranch, label: str) -> str:
    """Where a layer is aside, as `Ranch.aside`, by a way that nobody can lead elsewhere."""
    return str(ranch.inside / "lower" / label)


def source(ranch: Ranch, label: str, path: str) -> str:
    """From where a layer is to be opened now: aside, or its own path where a mount aside has gone.

    Args:
        label: what links call the layer.
        path: its own path.
    """
    if ranch.record.mode is Mode.MOUNTED and mountinfo.mount_at(ranch.aside(label)) is None:
        return path
    return ranch.aside(label)


def mount_farm(ranch: Ranch) -> None:
    """Put the farm over MERGED."""
    merged = ranch.open_merged(os.O_PATH | os.O_DIRECTORY)
    try:
        syscalls.mount(os.fsencode(ranch.inside / FARM), b"/proc/self/fd/%d" % merged, b"", syscalls.MS_BIND, b"")
    finally:
        os.close(merged)


def is_mounted(ranch: Ranch) -> bool:
    """Whether the farm lies over MERGED, as this process sees it."""
    if ranch.record.mode is Mode.PLAIN or mountinfo.mount_at(ranch.record.merged) is None:
        return False
    try:
        return os.path.samestat(os.lstat(ranch.record.merged), os.lstat(ranch.inside / FARM))
    except OSError:
        return False


def unmount_farm(ranch: Ranch, *, lazy: bool) -> None:
    """Take the farm away from MERGED.

    Args:
        lazy: even while it is in use; those who use it keep it until they are done (umount2(2), MNT_DETACH).

    Raises:
        OSError: EBUSY while it is used.
    """
    flags = syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0)
    syscalls.umount2(os.fsencode(ranch.record.merged), flags)


def remove(ranch: Ranch) -> None:
    """Unmount or unlink what is aside."""
    top = str(ranch.inside / "lower")
    for label in os.listdir(top) if os.path.isdir(top) else ():
        place = os.path.join(top, label)
        if os.path.islink(place):
            os.unlink(place)
            continue
        while mountinfo.mount_at(ranch.aside(label)) is not None:
            syscalls.umount2(os.fsencode(place), syscalls.UMOUNT_NOFOLLOW | syscalls.MNT_DETACH)
        os.rmdir(place)
    if os.path.isdir(top):
        os.rmdir(top)


def _bind_read_only(path: str, place: str) -> None:
    source, target = os.fsencode(path), os.fsencode(place)
    try:
        syscalls.mount(source, target, b"", syscalls.MS_BIND, b"")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Mounts below that came from another user namespace may not be left out (mount_namespaces(7)); no link leads
        # into them.
        syscalls.mount(source, target, b"", syscalls.MS_BIND | syscalls.MS_REC, b"")
    try:
        given = os.statvfs(place).f_flag
        kept = sum(flag for bit, flag in _KEPT.items() if given & bit)
        flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY | kept
        syscalls.mount(b"", target, b"", flags, b"")
    except OSError as error:
        syscalls.umount2(target, syscalls.MNT_DETACH)
        raise UserError(
            f"lower directory '{path}' cannot be mounted read-only: {error.strerror}", ExitCode.FAILURE
        ) from None
