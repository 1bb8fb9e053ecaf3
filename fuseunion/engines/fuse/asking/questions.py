"""What a command asks the daemon of a mount: virtual attributes, which are not listed (but with `-o list_layers`) and
cannot be set. But for LAYER and PATH they are those of the mount's root.

An attribute reaches the daemon from every place where the mount can be used, whatever program started it, and the
kernel lets nobody else ask. `syncfs(2)` and signals do not: the kernel keeps the one to itself (fs/fuse/inode.c
fuse_sync_fs), and the other needs the daemon's process id.
"""

import errno
import os

from fuseunion.linux import syscalls

PID = "user.fuseunion.pid"
"""The daemon's process id, in decimal."""

SYNC = "user.fuseunion.sync"
"""Put everything on disk; answered, with an empty value, when it is there. On a volatile mount too."""

FSYNC = "user.fuseunion.fsync"
"""The same, but as fsync(2) does: nothing on a volatile mount."""

COUNTS = "user.fuseunion.counts"
"""How many inodes the daemon knows, and how many files and directories are open: two decimals. The first is what
most of its memory is for, and falls when the kernel forgets (proc(5), drop_caches)."""

LAYER = "user.fuseunion.layer"
"""Of everything in the mount: `upper`, or the path of the lower that shows it."""

PATH = "user.fuseunion.path"
"""Of everything in the mount: its path in that layer."""


def write_out(path: str, question: str) -> None:
    """Put what was written to a mount on disk.

    Args:
        path: the root of the mount.
        question: SYNC or FSYNC.
    Raises:
        OSError: what went wrong in writing, which means that something is lost; EACCES or EPERM where the caller may
            not use the mount; EBUSY where it is used so much that there is no end to what is to be written.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Hands dirty pages of mapped files to the daemon, that is, queues them.
        syscalls.syncfs(fd)
        os.getxattr(fd, question)
    except OSError as error:
        if error.errno == errno.ENODATA:
            raise OSError(errno.ENOSYS, "its daemon is of an older version, which cannot be asked for it") from None
        raise
    finally:
        os.close(fd)
