"""From what lies on disk to what is shown: lstat, link counts, and setattr.

A merged directory shows one link, as in overlayfs: tools that count subdirectories by the link count (find -noleaf)
know that 1 means "not counted". All else shows true counts, also for hard links of which some names lie in a lower.

In a layer with stored ownership (core/ownership) owner, mode, type and device number are what the store says, and
chown and chmod change the store; sizes and times are the real object's.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from fuseunion.core import metadata, xattrs
from fuseunion.core.identity import KEEP
from fuseunion.core.inode import Directory, File, Inode
from fuseunion.core.ownership import Facts, OwnershipStore
from fuseunion.core.state import State

_LINK, _DIRECTORY = stat.S_IFLNK, stat.S_IFDIR


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


def stat_of(state: State, inode: Inode) -> os.stat_result:
    """What to show for an inode: lstat of what gives it its attributes, cached until `Inode.stale`.

    Raises:
        OSError: of the layer.
    """
    st = inode.st
    if st is None:
        assert isinstance(inode, (File, Directory))
        st = inode.real_stat()
        ownership = state.layer_of(inode).ownership
        if ownership is not None:
            st = ownership.load(inode.where(), st)
        inode.st = st
    return st


def nlink_of(state: State, inode: Inode, st: os.stat_result) -> int:
    """The count of links to show for an inode whose `stat_of` is `st`."""
    if isinstance(inode, Directory):
        if inode.removed:
            return 0
        return 1 if inode.is_merged or state.settings.static_nlink else st.st_nlink
    assert isinstance(inode, File)
    if inode.group is not None:
        return inode.group.nlink(st.st_nlink if inode.in_upper else None)
    if inode.in_upper or inode.link_key is not None:
        return st.st_nlink
    return 0 if inode.removed else 1


def apply(state: State, inode: Inode, change: Change) -> None:
    """Change an object of the upper. Owner first, because chown clears bits that a mode given with it sets again.

    Raises:
        OSError: as chown(2), chmod(2), truncate(2), utimensat(2).
    """
    assert isinstance(inode, (File, Directory))
    path, follow = inode.reach()
    try:
        if change.uid is not None or change.gid is not None:
            _chown(state, path, inode, change, follow)
        if change.mode is not None:
            chmod(state, inode, change.mode)
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


def _chown(state: State, path: bytes, inode: File | Directory, change: Change, follow: bool) -> None:
    uid = KEEP if change.uid is None else change.uid
    gid = KEEP if change.gid is None else change.gid
    ownership = state.writable().layer.ownership
    if ownership is None:
        metadata.chown(path, uid, gid, state.settings.identity, follow=follow)
    else:
        _store_owner(state, ownership, inode, uid, gid)
        os.chown(path, KEEP, KEEP, follow_symlinks=follow)  # makes ctime true, and clears what a real chown clears
    inode.absent_xattrs = frozenset()


def _store_owner(state: State, ownership: OwnershipStore, inode: File | Directory, uid: int, gid: int) -> None:
    mode = KEEP
    if isinstance(inode, File) and not stat.S_ISLNK(inode.kind):
        mode = _without_privileges(stat_of(state, inode).st_mode)
        _remove_capability(state, inode)
    ownership.change(inode.where(), inode.real_stat(), uid=uid, gid=gid, mode=mode)


def _without_privileges(mode: int, *, outsider: bool = False) -> int:
    """What chown(2) and writing leave of the mode of a file (fs/attr.c setattr_should_drop_suidgid)."""
    cleared = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP or outsider else 0)
    return stat.S_IMODE(mode) & ~cleared


def _remove_capability(state: State, inode: File) -> None:
    path, follow = inode.reach()
    for name in state.writable().layer.xattr_names(xattrs.CAPABILITY):
        try:
            os.removexattr(path, name, follow_symlinks=follow)
        except OSError:
            continue  # most files have none (ENODATA), and some filesystems cannot have any


def chmod(state: State, inode: Inode, mode: int) -> None:
    """chmod(2) of an object of the upper.

    Raises:
        OSError: EOPNOTSUPP for a symbolic link: the kernel never asks for it, and we do not trust that, since chmod(2)
            would follow it.
    """
    assert isinstance(inode, (File, Directory))
    if stat.S_ISLNK(inode.kind):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    upper = state.writable().layer
    mode = stat.S_IMODE(mode)
    if upper.ownership is not None:
        upper.ownership.change(inode.where(), inode.real_stat(), mode=mode)
    os.chmod(inode.reach()[0], metadata.real_mode(inode.kind, mode, upper))
    inode.stale()


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


def restate(state: State, inode: Inode, facts: Facts) -> bool:
    """Store owner, mode and type of an object of the upper as they were given, whole.

    The kernel lets nobody but root make a device (fs/namei.c vfs_mknod), so this is how the owner of a tree with
    stored ownership makes one: out of an empty file.

    Returns:
        True when the object is of another type now, which the kernel has to be told.

    Raises:
        OSError: EOPNOTSUPP where nothing is stored; EPERM for a 0/0 character device; EINVAL for a type that the object
            cannot stand for.
    """
    assert isinstance(inode, (File, Directory))
    ownership = state.writable().layer.ownership
    if ownership is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if facts.kind == stat.S_IFCHR and facts.rdev == 0:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    real = inode.real_stat()
    shown = stat_of(state, inode)
    if not facts.kind:
        facts = facts._replace(kind=stat.S_IFMT(shown.st_mode), rdev=shown.st_rdev)
    stands_for_another = stat.S_ISREG(real.st_mode) and not real.st_size and facts.kind not in (_LINK, _DIRECTORY)
    if facts.kind != stat.S_IFMT(shown.st_mode) and not stands_for_another:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    ownership.store(inode.where(), real, facts)
    os.chmod(inode.reach()[0], metadata.real_mode(facts.kind, facts.mode, state.writable().layer))
    inode.stale()
    changed = inode.kind != facts.kind
    inode.kind = facts.kind
    return changed


def clear_privileges(state: State, inode: File, *, privileged: bool, outsider: bool) -> None:
    """Take set-user-ID, set-group-ID and capabilities from an upper file that an unprivileged user truncates.

    The kernel does this before a write or a truncate, but not when it leaves O_TRUNC to the daemon (fs/fuse/file.c,
    atomic_o_trunc). The rule is fs/inode.c file_remove_privs: the bits stay for CAP_FSETID, capabilities never do.

    Args:
        outsider: the user is not in the file's group.
    """
    mode = stat.S_IMODE(stat_of(state, inode).st_mode)
    left = mode if privileged else _without_privileges(mode, outsider=outsider)
    if left != mode:
        chmod(state, inode, left)
    _remove_capability(state, inode)
