"""Which images the kernel may parse: those that nobody but root can have in hand.

Filesystems of the kernel are not written for data that somebody forged. Who mounts such a one gives the machine to
whoever made it. A program that parses it can do what its user can do, and for root that is too much as well, but it is
a process that can be confined, and that ends with what it is tricked into. So the kernel gets an image when all of this
is true, and else it is shown by a program:

* root of the machine mounts it;
* the file belongs to root, nobody else may write it (linux/owned.py), and nobody has it open to write: a descriptor
  outlives a change of owner and mode. Whether somebody has, a lease tells (fcntl(2), F_SETLEASE);
* so does each directory on the way to it, where somebody else could put another file; with the sticky bit others may
  write there, as in /tmp, since they cannot exchange what is root's;
* it lies on a disk, or in the memory, of this machine: on others the owner is the word of who serves them, and who
  writes there from another machine is not known here; nor on an overlay, beneath which the file is another;
* and that filesystem is not mounted `nosuid`, as what somebody else brings should be.

What it holds may still have come from elsewhere: who downloads an image and does not trust it, says `images=fuse`.
"""

import fcntl
import os
import signal
import stat

from fuseunion.images.recognise import Kind
from fuseunion.linux import f_types, owned, syscalls
from fuseunion.linux.namespaces import in_first_user_namespace

_OF_THIS_MACHINE = frozenset({
    f_types.EXT, f_types.XFS, f_types.BTRFS, f_types.F2FS, f_types.BCACHEFS, f_types.ZFS, f_types.SQUASHFS,
    f_types.EROFS, f_types.TMPFS,
})  # fmt: skip

OPEN_TO_WRITE = "somebody has the file open to write to it"
"""The objection that may pass."""


def objection(path: str, fd: int, kind: Kind) -> str | None:
    """Why the kernel does not get an image; None when it may.

    Args:
        path: of the file, as the user wrote it.
        fd: of the file, O_RDONLY; nobody has opened it to write through this object.
        kind: of the filesystem.

    Raises:
        OSError: of the directories.
    """
    reason = of_user()
    if reason is not None:
        return reason
    if kind is Kind.TAR:
        return f"it knows no {kind.value}"
    reason = owned.objection(os.fstat(fd))
    if reason is not None:
        return f"the file {reason}"
    if syscalls.filesystem_type(fd) not in _OF_THIS_MACHINE:
        return "it lies on a filesystem of which this machine does not know who writes there (FUSE, NFS, an overlay)"
    if os.fstatvfs(fd).f_flag & os.ST_NOSUID:
        return "it lies on a filesystem that is mounted nosuid"
    return _of_the_way(os.path.realpath(path)) or _of_writers(fd)


def of_user() -> str | None:
    """Why this process is not given a file that it has just made itself."""
    return None if os.geteuid() == 0 and in_first_user_namespace() else "only the machine's root can have that"


def _of_the_way(path: str) -> str | None:
    while path != "/":
        path = os.path.dirname(path)
        st = os.stat(path)
        reason = owned.objection(st)
        if reason is not None and not (st.st_uid == 0 and st.st_mode & stat.S_ISVTX):
            return f"the directory '{path}' {reason}"
    return None


def _of_writers(fd: int) -> str | None:
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Who opens it in this moment waits, and we are told by a signal: one that is ignored by default.
        fcntl.fcntl(own, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(own, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(own, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return OPEN_TO_WRITE
    except OSError as error:
        return f"whether somebody has the file open to write to it cannot be told here ({error.strerror})"
    finally:
        os.close(own)
    return None
