"""Names that go: unlink and rmdir.

What only a lower holds is hidden by a whiteout and never copied. What goes from the upper is held by a descriptor until
the kernel forgets it, so that open and current-directory users keep it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.marks.link_index import INODE, key_of
from fuseunion.core.ops.attributes import nlink_of, stat_of
from fuseunion.core.ops.copy_up import copy_up_directory
from fuseunion.core.tree.inode import Directory, File
from fuseunion.core.tree.listing import is_empty
from fuseunion.core.tree.lookup import covering, lookup, lower_is_positive, lower_name
from fuseunion.core.tree.state import State
from fuseunion.linux.os_error import os_error


def unlink(state: State, directory: Directory, name: bytes) -> None:
    """Remove a non-directory.

    Raises:
        OSError: ENOENT, EISDIR, EROFS, ENOSPC (a whiteout needs an inode), EACCES; nothing has changed then.
    """
    state.writable()
    file = lookup(state, directory, name)
    if file is None:
        raise os_error(errno.ENOENT, name)
    with state.table.held(file):
        if not isinstance(file, File):
            raise os_error(errno.EISDIR, name)
        whiteouts = state.writable().whiteouts
        upper = copy_up_directory(state, directory)
        if upper.stat(name) is None:
            with covering_lower_name(state, directory, name):
                whiteouts.cover(upper, name)
        else:
            with holding(file, upper, name):
                if lower_is_positive(state, directory, name):
                    whiteouts.replace_file(upper, name)
                else:
                    os.unlink(name, dir_fd=upper.fd())
        name_gone(state, file, directory, name)


def rmdir(state: State, directory: Directory, name: bytes) -> None:
    """Remove a directory in which nothing is visible.

    Raises:
        OSError: ENOENT, ENOTDIR, ENOTEMPTY, EROFS, ENOSPC, EACCES; nothing has changed then.
    """
    upper_side = state.writable()
    target = lookup(state, directory, name)
    if target is None:
        raise os_error(errno.ENOENT, name)
    with state.table.held(target):
        if not isinstance(target, Directory):
            raise os_error(errno.ENOTDIR, name)
        if not is_empty(state, target):
            raise os_error(errno.ENOTEMPTY, name)
        upper = copy_up_directory(state, directory)
        positive = lower_is_positive(state, directory, name)
        if target.upper is None:
            upper_side.whiteouts.cover(upper, name)
        else:
            held = upper.hold(name)
            try:
                _remove_upper_directory(state, upper, name, positive=positive)
            except BaseException:
                os.close(held)
                raise
            target.upper.pin(held)
        directory_gone(state, target, directory, name)


def _remove_upper_directory(state: State, upper: RealDir, name: bytes, *, positive: bool) -> None:
    side = state.writable()
    if positive:
        removed = side.whiteouts.replace_directory(upper, name)
    else:
        try:
            os.rmdir(name, dir_fd=upper.fd())
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        removed = side.work.take(upper, name)  # whiteouts are in it
    try:
        side.work.remove_tree(removed)
    except OSError as error:
        # The directory is gone for the user; what resists is garbage in work.
        state.log.warning("cannot remove %r from the work directory: %s", removed, error)


@contextmanager
def holding(file: File, upper: RealDir, name: bytes) -> Iterator[None]:
    """Hold a file by a descriptor while, in the block, a name that may be the one that leads to it goes."""
    pinned = file.pin >= 0
    if file.upper == (upper, name):
        file.pin_down()
    try:
        yield
    except BaseException:
        if not pinned:
            file.unpin()
        raise


@contextmanager
def covering_lower_name(state: State, directory: Directory, name: bytes) -> Iterator[None]:
    """Count a name of a lower file with several names as gone, while it goes in the block."""
    found = lower_name(state, directory, name)
    if found is None or found[1].st_nlink < 2:
        yield
        return
    real, st = found
    number = state.numbers.number(st.st_dev, st.st_ino)
    group = state.writable().links.get_or_new(key_of(number, st), number, st.st_nlink)
    with covering(state, group, real, name):
        yield
    known = state.table.find_lower((st.st_dev, st.st_ino))
    if known is not None:
        known.group = group


def name_gone(state: State, file: File, directory: Directory, name: bytes) -> None:
    """Keep the inodes true after a non-directory lost a name. It cannot fail: the name is gone."""
    directory.children.pop(name, None)
    directory.stale()
    file.remove_place(directory, name)
    file.stale()
    if file.upper is not None and directory.upper is not None and file.upper == (directory.upper, name):
        _relocate(file)
    if file.group is not None:
        _end_group(state, file)


def _end_group(state: State, file: File) -> None:
    """Forget what the link index holds of a file of which no name is left."""
    assert file.group is not None
    try:
        if nlink_of(state, file, stat_of(state, file)):
            return
        if file.in_upper:
            file.pin_down()
            file.upper = None
    except OSError as error:
        state.log.warning("the link index keeps inode %d: %s", file.ino, error)
        return
    file.group.remove()
    file.stale()


def _relocate(file: File) -> None:
    """Find another name that leads to the file in the upper; else the descriptor does that holds it."""
    file.upper = None
    candidates = [(place.upper, name) for place, name in file.places() if place.upper is not None]
    if file.group is not None:
        candidates.append((file.group.directory, INODE))
    for real, name in candidates:
        try:
            st = real.stat(name)
        except OSError:
            continue  # in a directory that cannot be entered: the file is held
        if st is not None and (st.st_dev, st.st_ino) == file.disk_id:
            file.upper = (real, name)
            file.unpin()
            return


def directory_gone(state: State, target: Directory, directory: Directory, name: bytes) -> None:
    """Keep the inodes true after a directory was removed."""
    directory.children.pop(name, None)
    directory.stale()
    for child in list(target.children.values()):
        state.log.error("inode %d was left in a removed directory", child.ino)
    target.mark_removed()
    target.stale()
