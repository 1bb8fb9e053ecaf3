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
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

from fuseunion.core.copying import metadata
from fuseunion.core.format import xattr_names
from fuseunion.core.ids.identity import KEEP
from fuseunion.core.ownership.facts import Facts
from fuseunion.core.ownership.store import OwnershipStore
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import NONE_ABSENT, Inode
from fuseunion.core.tree.state import State
from fuseunion.linux.objects.permission import as_owner_of
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.linux.os_error import os_error

_LINK, _DIRECTORY = stat.S_IFLNK, stat.S_IFDIR
_NOTHING_TO_RESTORE = nullcontext()
_CLOCK_REALTIME_COARSE = 5  # include/uapi/linux/time.h


class Change(NamedTuple):
    """The fields of a setattr that are set; ids are those on disk, times are in nanoseconds.

    Attributes:
        touch: nothing else is asked for, but the time of change is new (chown(2) with -1 for both ids).
        clear_capability: what the caller does takes security.capability from the file.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    touch: bool = False
    clear_capability: bool = False

    @property
    def changes_owner(self) -> bool:
        """True for a chown(2)."""
        return self.uid is not None or self.gid is not None

    @property
    def ends_privileges(self) -> bool:
        """True when no capability of the file survives (security/commoncap.c cap_inode_killpriv)."""
        return self.changes_owner or self.clear_capability


NO_CHANGE = Change()


def facts_after(facts: Facts, change: Change) -> Facts:
    """Owner and mode after a change to an object that has not got any others yet."""
    if change is NO_CHANGE:
        return facts
    mode = facts.mode
    if change.mode is not None:
        mode = stat.S_IMODE(change.mode)
    elif change.changes_owner and facts.kind not in (_LINK, _DIRECTORY):
        mode = without_privileges(mode)
    return facts._replace(
        uid=facts.uid if change.uid in (None, KEEP) else change.uid,
        gid=facts.gid if change.gid in (None, KEEP) else change.gid,
        mode=mode,
    )


def times_after(shown: os.stat_result, change: Change) -> tuple[int, int]:
    """Time of access and of modification after a change, in nanoseconds."""
    mtime_ns = change.mtime_ns
    if mtime_ns is None:
        # The clock that the kernel's own stamps come from (fs/inode.c current_time): no later one may be earlier.
        now = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
        mtime_ns = shown.st_mtime_ns if change.size is None else now
    return shown.st_atime_ns if change.atime_ns is None else change.atime_ns, mtime_ns


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
            with inode.grasp() as held:
                st = ownership.load(held, st)
        inode.st = st
    return st


def nlink_of(state: State, inode: Inode, st: os.stat_result) -> int:
    """The count of links to show for an inode whose `stat_of` is `st`."""
    if isinstance(inode, Directory):
        if inode.removed:
            return 0
        return 1 if shows_one_link(state, inode) else st.st_nlink
    assert isinstance(inode, File)
    if inode.group is not None:
        return inode.group.nlink(st.st_nlink if inode.has_upper else None)
    if inode.has_upper or inode.lower_links is not None:
        return st.st_nlink
    return 0 if inode.removed else 1


def shows_one_link(state: State, directory: Directory) -> bool:
    """Whether a directory that has a name shows one link, whatever its parts have: those of several cannot be counted
    (fs/overlayfs/inode.c ovl_getattr)."""
    return directory.is_merged or state.settings.static_nlink


def flags_of(inode: Inode, command: int, size: int) -> bytes:
    """What an ioctl(2) says that reads inode flags (ioctl_iflags(2)).

    Args:
        size: of what it gives, in bytes.

    Raises:
        OSError: ENOTTY for what has none; of the layer.
    """
    with inode.grasp() as held:
        # Commands say that they take a long, though it is an int (ioctl_iflags(2), Notes).
        return as_owner_of(held, lambda: held.ioctl(command, bytes(max(size, 8))))[:size]


def set_flags(inode: Inode, command: int, value: bytes) -> None:
    """Set inode flags by an ioctl(2). Precondition: the inode is in the upper; the kernel has checked the caller.

    Raises:
        OSError: EPERM, EOPNOTSUPP, ENOTTY of the upper's filesystem.
    """
    with inode.grasp() as held:
        as_owner_of(held, lambda: held.ioctl(command, value.ljust(8, b"\0")))
    inode.stale()


def apply(state: State, inode: Inode, change: Change) -> None:
    """Change an object of the upper. Owner first, because chown clears bits that a mode given with it sets again.

    Raises:
        OSError: as chown(2), chmod(2), truncate(2), utimensat(2).
    """
    assert isinstance(inode, (File, Directory))
    shown: os.stat_result | None = None
    try:
        with inode.grasp() as held, _restored_on_failure(state, held, change):
            if change.changes_owner or change.touch:
                _chown(state, held, inode, change)
            if change.clear_capability:
                _remove_capability(state, held)
            if change.mode is not None:
                _chmod(state, held, inode, change.mode)
            atime_ns, mtime_ns = change.atime_ns, change.mtime_ns
            if (atime_ns is None) != (mtime_ns is None):
                st = held.stat()  # before the size changes, and with it the time of modification
                atime_ns = st.st_atime_ns if atime_ns is None else atime_ns
                mtime_ns = st.st_mtime_ns if mtime_ns is None else mtime_ns
            if change.size is not None:
                _truncate(held, inode, change.size)
            if atime_ns is not None and mtime_ns is not None:
                held.utime(atime_ns, mtime_ns)
            if state.writable().layer.ownership is None and not (isinstance(inode, File) and inode.data is not None):
                shown = _seen(held)
    finally:
        inode.stale()
    inode.st = shown


def _seen(held: RealObject) -> os.stat_result | None:
    """lstat of an object after a change to it; None where that fails: the change was made, who asks next is told."""
    try:
        return held.stat()
    except OSError:
        return None


def _restored_on_failure(state: State, held: RealObject, change: Change) -> AbstractContextManager[None]:
    """Give an object its owner and mode back when only a part of a change in the block could be made."""
    one_call = change.mode is None if change.changes_owner else change.size is None or change.mode is None
    if one_call and state.writable().layer.ownership is None:
        return _NOTHING_TO_RESTORE
    return _restored(state, held, change)


@contextmanager
def _restored(state: State, held: RealObject, change: Change) -> Iterator[None]:
    ownership = state.writable().layer.ownership
    real = held.stat()
    facts = Facts.of(real if ownership is None else ownership.load(held, real))
    try:
        yield
    except BaseException:
        try:
            now = held.stat()
            if ownership is not None:
                if Facts.of(ownership.load(held, now)) != facts:
                    ownership.store(held, real, facts)
            elif (now.st_uid, now.st_gid) != (real.st_uid, real.st_gid):
                held.chown(real.st_uid, real.st_gid)
            if not stat.S_ISLNK(real.st_mode) and held.stat().st_mode != real.st_mode:
                held.chmod(stat.S_IMODE(real.st_mode))
        except OSError as error:
            state.log.error("a change of inode %d was made in part: %s", real.st_ino, error)
        raise


def _chown(state: State, held: RealObject, inode: File | Directory, change: Change) -> None:
    uid = KEEP if change.uid is None else change.uid
    gid = KEEP if change.gid is None else change.gid
    ownership = state.writable().layer.ownership
    if ownership is None:
        metadata.chown(held, uid, gid, state.settings.identity)
    else:
        if change.changes_owner:
            _store_owner(state, ownership, held, inode, uid, gid)
        held.chown(KEEP, KEEP)  # makes ctime true, and clears what a real chown clears
    inode.absent_xattrs = NONE_ABSENT


def _store_owner(
    state: State, ownership: OwnershipStore, held: RealObject, inode: File | Directory, uid: int, gid: int
) -> None:
    mode = KEEP
    if isinstance(inode, File) and not stat.S_ISLNK(inode.kind):
        mode = without_privileges(stat_of(state, inode).st_mode)
        _remove_capability(state, held)
    ownership.change(held, held.stat(), uid=uid, gid=gid, mode=mode)


def without_privileges(mode: int, *, outsider: bool = False) -> int:
    """What chown(2) and writing leave of the mode of a file (fs/attr.c setattr_should_drop_suidgid).

    Args:
        outsider: the user is not in the file's group.
    """
    cleared = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP or outsider else 0)
    return stat.S_IMODE(mode) & ~cleared


def _remove_capability(state: State, held: RealObject) -> None:
    for name in state.writable().layer.xattr_names(xattr_names.CAPABILITY):
        try:
            as_owner_of(held, partial(held.removexattr, name))
        except OSError as error:
            # Most files have none, and some filesystems cannot have any; who may not remove one may not have set it.
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
                raise


def chmod(state: State, inode: Inode, mode: int) -> None:
    """chmod(2) of an object of the upper.

    Raises:
        OSError: EOPNOTSUPP for a symbolic link: the kernel never asks for it, and we do not trust that, since chmod(2)
            would follow it.
    """
    assert isinstance(inode, (File, Directory))
    with inode.grasp() as held:
        _chmod(state, held, inode, mode)


def _chmod(state: State, held: RealObject, inode: Inode, mode: int) -> None:
    if stat.S_ISLNK(inode.kind):
        raise os_error(errno.EOPNOTSUPP)
    upper = state.writable().layer
    mode = stat.S_IMODE(mode)
    if upper.ownership is not None:
        upper.ownership.change(held, held.stat(), mode=mode)
    held.chmod(metadata.real_mode(held, inode.kind, mode, upper))
    inode.stale()


def _truncate(held: RealObject, inode: File | Directory, size: int) -> None:
    assert isinstance(inode, File)
    for handle in inode.handles:
        if handle.writable:
            os.ftruncate(handle.fd, size)
            return
    fd = as_owner_of(held, lambda: inode.open(os.O_WRONLY))
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def setgid_is_at_risk(mode: int) -> bool:
    """True for the mode (with its type) of a set-group-ID file that its group may not execute.

    Who is not in its group clears the bit by changing the data (fs/attr.c setattr_should_drop_sgid, since Linux 6.2).
    fs/fuse/dir.c fuse_setattr drops that request, so that it is left to the daemon, who must know the caller.
    """
    return stat.S_ISREG(mode) and mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID


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
        raise os_error(errno.EOPNOTSUPP)
    if facts.kind == stat.S_IFCHR and facts.rdev == 0:
        raise os_error(errno.EPERM)
    shown = stat_of(state, inode)
    if not facts.kind:
        facts = facts._replace(kind=stat.S_IFMT(shown.st_mode), rdev=shown.st_rdev)
    with inode.grasp() as held:
        real = held.stat()
        stands_for_another = stat.S_ISREG(real.st_mode) and not real.st_size and facts.kind not in (_LINK, _DIRECTORY)
        if facts.kind != stat.S_IFMT(shown.st_mode) and not stands_for_another:
            raise os_error(errno.EINVAL)
        ownership.store(held, real, facts)
        held.chmod(metadata.real_mode(held, facts.kind, facts.mode, state.writable().layer))
    inode.stale()
    changed = inode.kind != facts.kind
    inode.kind = facts.kind
    return changed


def truncation(state: State, file: File, size: int, *, privileged: bool, outsider: bool) -> Change:
    """What a truncation does to a file: besides the size, set-user-ID, set-group-ID and capabilities go.

    The kernel does this before a write or a truncate, but not when it leaves O_TRUNC to the daemon (fs/fuse/file.c,
    atomic_o_trunc). The rule is fs/inode.c file_remove_privs: the bits stay for CAP_FSETID, capabilities never do.

    Args:
        outsider: the user is not in the file's group.
    """
    mode = stat.S_IMODE(stat_of(state, file).st_mode)
    left = mode if privileged else without_privileges(mode, outsider=outsider)
    return Change(size=size, mode=None if left == mode else left, clear_capability=True)
