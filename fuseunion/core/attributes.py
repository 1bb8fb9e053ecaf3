"""From what lies on disk to what is shown: lstat, link counts, and setattr.

A merged directory shows one link, as in overlayfs: tools that count subdirectories by the link count (find -noleaf)
know that 1 means "not counted". All else shows true counts, also for hard links of which some names lie in a lower.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from fuseunion.core import xattrs
from fuseunion.core.inode import Directory, File, Inode


@dataclass(slots=True)
class Change:
    """The fields of a setattr that are set; ids are those on disk, times are in nanoseconds."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None

    @property
    def empty(self) -> bool:
        """True when nothing is to be changed, which the kernel does ask for."""
        return all(field is None for field in (self.mode, self.uid, self.gid, self.size, self.atime_ns, self.mtime_ns))


def stat_of(inode: Inode) -> os.stat_result:
    """lstat of what gives the inode its attributes, cached until `Inode.stale`.

    Raises:
        OSError: of the layer.
    """
    st = inode.st
    if st is None:
        if isinstance(inode, (File, Directory)):
            st = inode.st = inode.real_stat()
        else:
            raise TypeError(inode)
    return st


def nlink_of(inode: Inode, st: os.stat_result) -> int:
    """The count of links to show for an inode whose `stat_of` is `st`."""
    if isinstance(inode, Directory):
        if inode.removed:
            return 0
        return 1 if inode.is_merged else st.st_nlink
    assert isinstance(inode, File)
    if inode.group is not None:
        return inode.group.nlink(st.st_nlink if inode.in_upper else None)
    if inode.in_upper or inode.link_key is not None:
        return st.st_nlink
    return 0 if inode.removed else 1


def apply(inode: Inode, change: Change) -> None:
    """Change an object of the upper. Owner first, because chown clears bits that a mode given with it sets again.

    Raises:
        OSError: as chown(2), chmod(2), truncate(2), utimensat(2).
    """
    assert isinstance(inode, (File, Directory))
    path = inode.proc_path()
    # A pin is reached through a magic link, which is to be followed; a name never is.
    follow = isinstance(inode, File) and inode.location() is None
    try:
        if change.uid is not None or change.gid is not None:
            _chown(path, inode, change, follow)
        if change.mode is not None:
            os.chmod(_chmod_path(inode, path), stat.S_IMODE(change.mode))
        if change.size is not None:
            _truncate(inode, change.size)
        if change.atime_ns is not None or change.mtime_ns is not None:
            st = os.stat(path, follow_symlinks=follow)
            times = (
                st.st_atime_ns if change.atime_ns is None else change.atime_ns,
                st.st_mtime_ns if change.mtime_ns is None else change.mtime_ns,
            )
            os.utime(path, ns=times, follow_symlinks=follow)
    finally:
        inode.stale()


def _chown(path: bytes, inode: File | Directory, change: Change, follow: bool) -> None:
    uid = -1 if change.uid is None else change.uid
    gid = -1 if change.gid is None else change.gid
    os.chown(path, uid, gid, follow_symlinks=follow)
    inode.absent_xattrs = frozenset()


def _chmod_path(inode: File | Directory, path: bytes) -> bytes:
    """chmod(2) follows links; the kernel never asks for the mode of a symbolic link, and we do not trust that."""
    if stat.S_ISLNK(inode.kind):
        raise OSError(95, os.strerror(95))
    return path


def _truncate(inode: File | Directory, size: int) -> None:
    assert isinstance(inode, File)
    for handle in inode.handles:
        if handle.writable:
            os.ftruncate(handle.fd, size)
            return
    fd = inode.open(os.O_WRONLY)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def setgid_is_at_risk(st: os.stat_result) -> bool:
    """True for a set-group-ID file that its group may not execute.

    Who is not in its group clears the bit by changing the data (fs/attr.c setattr_should_drop_sgid, since Linux 6.2).
    fs/fuse/dir.c fuse_setattr drops that request, so that it is left to the daemon, who must know the caller.
    """
    return stat.S_ISREG(st.st_mode) and st.st_mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID


def clear_privileges(inode: File, *, privileged: bool, outsider: bool) -> None:
    """Take set-user-ID, set-group-ID and capabilities from an upper file that an unprivileged user truncates.

    The kernel does this before a write or a truncate, but not when it leaves O_TRUNC to the daemon (fs/fuse/file.c,
    atomic_o_trunc). The rule is fs/inode.c file_remove_privs: the bits stay for CAP_FSETID, capabilities never do.

    Args:
        outsider: the user is not in the file's group.
    """
    st = stat_of(inode)
    mode = stat.S_IMODE(st.st_mode)
    if not privileged:
        mode &= ~stat.S_ISUID
        if mode & stat.S_IXGRP or outsider:
            mode &= ~stat.S_ISGID
    path = inode.proc_path()
    if mode != stat.S_IMODE(st.st_mode):
        os.chmod(path, mode)
        inode.stale()
    try:
        os.removexattr(path, xattrs.CAPABILITY, follow_symlinks=inode.location() is None)
    except OSError:
        pass  # most files have none (ENODATA), and some filesystems cannot have any
