"""Directories copied up, and what every finished copy gets before it is shown."""

from __future__ import annotations

import errno
import os

from fuseunion.core.copying import metadata
from fuseunion.core.disk.access import LayerAccess
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.work import WorkDirectory
from fuseunion.core.marks import origin_mark
from fuseunion.core.ops.attributes import NO_CHANGE, Change, facts_after, stat_of, times_after
from fuseunion.core.ownership.facts import Facts
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import NONE_ABSENT
from fuseunion.core.tree.state import State, Upper
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.linux.os_error import os_error


def copy_up_directory(state: State, directory: Directory) -> RealDir:
    """The upper's part of a directory, made with all missing ancestors if there is none.

    A removed directory, which somebody has open, gets one without a name.

    Raises:
        OSError: EROFS without an upper; ESTALE for an exchanged directory; of the calls.
    """
    if directory.upper is not None:
        return directory.upper
    upper = state.writable()
    if directory.removed:
        return _copy_removed(state, upper, directory)
    missing: list[Directory] = []
    node: Directory | None = directory
    while node is not None and node.upper is None:
        if node.exchanged:
            raise os_error(errno.ESTALE, node.name)  # its name may be another inode's by now
        missing.append(node)
        node = node.parent
    assert node is not None and node.upper is not None, "the root has an upper"
    made = node.upper
    for node in reversed(missing):
        made = _copy_directory(state, upper, made, node)
    return made


def _copy_directory(state: State, upper: Upper, parent: RealDir, directory: Directory) -> RealDir:
    work = upper.work
    temporary, made = _make_in_work(state, work, directory)
    try:
        with parent.times_kept():
            work.install(temporary, parent, directory.name)
    except BaseException:
        work.remove_tree(temporary)
        raise
    if directory.parent is not None:
        directory.parent.stale()  # its times are others where they could not be kept
    return _copied(state, directory, parent.child(directory.name, made))


def _copy_removed(state: State, upper: Upper, directory: Directory) -> RealDir:
    work = upper.work
    temporary, made = _make_in_work(state, work, directory)
    try:
        held = work.tmp.hold(temporary)
    finally:
        work.remove_tree(temporary)
    assert directory.parent is not None and directory.parent.upper is not None, "the whiteout lies in it"
    real = directory.parent.upper.child(directory.name, made)
    real.pin(held)
    return _copied(state, directory, real)


def _make_in_work(state: State, work: WorkDirectory, directory: Directory) -> tuple[bytes, os.stat_result]:
    """A finished copy: its name in work, and its lstat."""
    st = stat_of(state, directory)
    temporary = work.new_name()
    os.mkdir(temporary, 0o700, dir_fd=work.tmp.fd())
    try:
        with directory.grasp() as source, work.tmp.held(temporary) as target:
            dress(state, directory, directory.top.layer, source, target, st, NO_CHANGE)
            return temporary, target.stat()
    except BaseException:
        work.remove_tree(temporary)
        raise


def _copied(state: State, directory: Directory, real: RealDir) -> RealDir:
    """The number and what is shown stay; only the place where they are read changes."""
    directory.upper = real
    directory.absent_xattrs = NONE_ABSENT
    directory.stale()
    state.restacked(directory)
    return real


def dress(
    state: State,
    inode: File | Directory,
    lower: LayerAccess,
    source: RealObject,
    target: RealObject,
    shown: os.stat_result,
    change: Change,
) -> None:
    """Owner, marks, xattrs, mode and times of a finished copy that is still in work.

    The mode comes after all xattrs: a user's attributes, and so the marks of a daemon that is the copy's plain owner,
    need write permission on it (fs/xattr.c xattr_permission).

    Args:
        lower: the layer that the copy is made from.
        source, target: held by descriptors.
        shown: what lstat shows of the lower object.
        change: what is to be different.
    """
    upper = state.writable()
    facts = facts_after(Facts.of(shown), change)
    settings = state.settings
    made = target.stat()
    given = metadata.give_owner(target, made, facts, upper.layer, settings.identity, optional=settings.owner_optional)
    prefix = upper.work.capabilities.xattr_prefix
    if prefix is not None:
        if isinstance(inode, Directory):
            metadata.mark_merged(target, prefix)
        origin_mark.write(target, prefix, made.st_ino, inode.ino, shown.st_ctime_ns)
    metadata.copy_xattrs(
        source,
        target,
        lower,
        upper.layer,
        without_capability=change.ends_privileges,
        owner_optional=settings.owner_optional,
    )
    metadata.give_mode(target, given, upper.layer)
    target.utime(*times_after(shown, change))
