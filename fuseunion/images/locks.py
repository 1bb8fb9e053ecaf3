"""Many readers of an image, or one writer.

Two who write to a filesystem at once destroy it, and who reads it meanwhile sees nonsense. So everybody who uses an
image holds a lock on its bytes: of the whole file, or of one partition of it. It is the lock of Apptainer
(pkg/util/fs/lock/lock.go: fcntl(2), F_OFD_SETLK), so that the two keep out of each other's way.

The lock belongs to the open file. Who shows the image has that too: a program by a duplicate of the descriptor, the
kernel by the loop device. So the lock ends when both have ended: who still writes out after the daemon was killed keeps
the next one waiting. And so it is held where there is no daemon, as under the kernel's overlayfs.

A loop device of somebody else, as mount(8) takes it, has no lock. It is looked for, which says nothing of the moment
after.
"""

import errno
import fcntl
import logging
import os
import struct
import time

from fuseunion.errors import ExitCode, UserError
from fuseunion.images import loops
from fuseunion.linux import mountinfo
from fuseunion.linux.proc import locks, processes

_log = logging.getLogger("fuseunion.images")

PATIENCE = 1.5
"""Seconds that a program may take to write out what a mount that has just ended has left to it."""

_PAUSE = 0.01

_TAKEN = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Filesystems without locks, as Lustre is mounted by default (mount.lustre(8), noflock)."""

_FLOCK = struct.Struct("hhqqi0q")


def take(
    fd: int,
    path: str,
    offset: int = 0,
    size: int = 0,
    *,
    exclusive: bool,
    will_write: bool = False,
    patience: float = PATIENCE,
) -> None:
    """Lock an image, or a partition, until the last duplicate of the descriptor is closed.

    Args:
        fd: of the file; open for writing where the lock is exclusive.
        path: for the message.
        offset: where the image begins, in bytes.
        size: how long it is; 0 for all that follows.
        exclusive: nobody else may even read.
        will_write: an exclusive lock comes next; for the message.
        patience: how many seconds a lock of somebody else may last yet.

    Raises:
        UserError: BUSY, with who has it; or because the file has no name any more.
        OSError: of fcntl(2).
    """
    wanted = _FLOCK.pack(fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK, os.SEEK_SET, offset, size, 0)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
            break
        except OSError as error:
            if error.errno in _NO_LOCKS_HERE:
                _log.warning("%s cannot be locked here (%s): nothing else may use it", path, error.strerror)
                break
            if error.errno not in _TAKEN:
                raise
        if time.monotonic() >= deadline:
            raise _in_use(fd, path, exclusive=exclusive or will_write)
        time.sleep(_PAUSE)
    if not os.fstat(fd).st_nlink:
        # Who had the lock has put another file in its place, as a resize does: what is written here would be lost.
        raise UserError(f"image '{path}' was just replaced or removed; try again", ExitCode.BUSY)


def refuse_loop(fd: int, path: str, offset: int = 0, size: int = 0, *, exclusive: bool) -> None:
    """Refuse an image, or a partition, that the kernel has by a loop device which is not ours.

    Precondition: the lock is held, which those of ours would not have let us.

    Args:
        fd: of the file.
        path: for the message.
        offset, size: as in `take`.
        exclusive: else only a device counts that can be written.

    Raises:
        UserError: BUSY.
    """
    for use in loops.uses_of(fd):
        apart = (size and offset + size <= use.offset) or (use.size and use.offset + use.size <= offset)
        if not apart and (exclusive or use.writable):
            raise UserError(
                f"image '{path}' is in use by /dev/{use.name}; unmount it, or: losetup -d /dev/{use.name}",
                ExitCode.BUSY,
            )


def _in_use(fd: int, path: str, *, exclusive: bool) -> UserError:
    from fuseunion.linux.runtime.served import mounted_by  # only for the message

    seen = [pid for pid in locks.holders(os.fstat(fd), "OFDLCK") if pid != os.getpid()]
    places = {pid: mounted_by(pid) for pid in seen}
    # The daemon rather than the program that it has started.
    pid = next((pid for pid in seen if places[pid]), next(iter(seen), None))
    where = f" at '{places[pid]}'" if pid is not None and places[pid] else ""
    who = f" (process {pid}, {processes.name(pid)})" if pid is not None else ""
    if pid is None:
        where, who = _by_kernel(fd)
    what = "is in use" if exclusive else "is being written"
    return UserError(
        f"image '{path}' {what} by another mount or program{where}{who}; end that one, or use another image",
        ExitCode.BUSY,
    )


def _by_kernel(fd: int) -> tuple[str, str]:
    """Where the kernel's overlayfs shows an image, and by which loop device; nothing where it does not."""
    use = next(loops.uses_of(fd), None)
    if use is None:
        return "", ""
    place = loops.place(use.name).encode()
    words = (place + b"/", place + b":", place + b",")
    overlays = (mount for mount in mountinfo.mounts() if mount.fstype == "overlay")
    shown = next((mount for mount in overlays if any(word in mount.raw_options + b"," for word in words)), None)
    return f" at '{shown.target}'" if shown is not None else "", f" (the kernel, /dev/{use.name})"
