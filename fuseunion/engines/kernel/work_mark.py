"""By what `umount` knows the work directory again that a mount was made with.

The kernel tells the path of it only, and who owns the directory above may have put another directory there meanwhile,
even one of root's. So the mount leaves a mark on its work directory, which nobody else may write: the device and inode
numbers of the upper and of the work directory itself, which a copied mark cannot have. Attributes of `trusted` come
first, since an ordinary user can forge those of `user` on what is the user's own.
"""

from __future__ import annotations

import os

_NAMES = ("trusted.fuseunion.mounted", "user.fuseunion.mounted")


def put(work_fd: int, upper_fd: int) -> None:
    """Mark a work directory. Where no mark can be put, the directory stays when the mount ends."""
    for name in _NAMES:
        try:
            os.setxattr(work_fd, name, _value(work_fd, upper_fd))
            return
        except OSError:
            continue  # not for this user, or not on this filesystem


def take(work_fd: int, upper_fd: int) -> bool:
    """Take the mark away; False, with nothing changed, where it is missing or tells of others."""
    for name in _NAMES:
        try:
            value = os.getxattr(work_fd, name)
        except OSError:
            continue  # as above
        if value == _value(work_fd, upper_fd):
            os.removexattr(work_fd, name)
            return True
        return False
    return False


def _value(work_fd: int, upper_fd: int) -> bytes:
    work, upper = os.fstat(work_fd), os.fstat(upper_fd)
    return b"%d:%d %d:%d" % (upper.st_dev, upper.st_ino, work.st_dev, work.st_ino)
