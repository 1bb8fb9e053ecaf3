"""Names that go: unlink and rmdir.

What only a lower holds is hidden by a whiteout and never copied. What goes from the upper is held by a descriptor until
the kernel forgets it, so that open and current-directory users keep it.

What goes is recognised just before. Linux removes and renames by name alone, so that between the two calls the owner of
UPPER can put another object under the name. A file or an empty directory could be removed by that owner as well; what
is to be removed with all that is in it is therefore recognised once more in work, where nobody else can reach it.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import AbstractContextManager, nullcontext

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.ops.attributes import nlink_of, stat_of
from fuseunion.core.ops.copy_up.directories import copy_up_directory
from fuseunion.core.ops.copy_up.link_names import covering_lower_name
from fuseunion.core.ops.removing.plain import plainly_covered
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.listing import found_empty
from fuseunion.core.tree.lookup import existing, lower_is_positive
from fuseunion.core.tree.state import State
from fuseunion.linux.os_error import os_error
from fuseunion.steps import Steps

_NOT_EMPTY = frozenset({errno.ENOTEMPTY, errno.EEXIST})
"""What rmdir(2) answers for a directory that has something in it."""


def unlink(state: State, directory: Directory, name: bytes, *, keeps_data: bool = True) -> None:
    """Remove a non-directory.

    Args:
        keeps_data: for who may have it open. Some filesystems rename what is open (LayerAccess.keeps_removed), and may
            have no space for that.

    Raises:
        OSError: ENOENT, EISDIR, EROFS, ENOSPC (a whiteout needs an inode), EACCES; ESTALE for what was exchanged;
            nothing has changed then.
    """
    state.writable()
    try:
        if plainly_covered(state, directory, name):
            return
    except FileExistsError:
        pass  # somebody else has put something there: it is recognised below
    file = existing(state, directory, name)
    with state.table.held(file):
        if not isinstance(file, File):
            raise os_error(errno.EISDIR, name)
        upper = copy_up_directory(state, directory)
        with nullcontext() if keeps_data else file.holding(data=False):
            if not _removed_from_upper(state, file, directory, upper, name):
                with covering_lower_name(state, directory, name):
                    state.writable().whiteouts.cover(upper, name)
        name_gone(state, file, directory, name)


def _removed_from_upper(state: State, file: File, directory: Directory, upper: RealDir, name: bytes) -> bool:
    """Remove a name from the upper, with a whiteout in its place where a lower shows something.

    Returns:
        False when nothing of that name is there.

    Raises:
        OSError: ESTALE for what was exchanged; nothing has changed then, as with any other error.
    """
    try:
        with holding(file, upper, name) as recognised:
            if not recognised:
                st = upper.stat(name)
                if st is None:
                    return False
                file.recognise(st)
            if lower_is_positive(state, directory, name):
                state.writable().whiteouts.replace_file(upper, name)
            else:
                upper.unlink(name)
            return True
    except FileNotFoundError:
        return False


def rmdir(state: State, directory: Directory, name: bytes) -> Steps[None]:
    """Remove a directory in which nothing is visible: there may be very many whiteouts in it.

    Raises:
        OSError: ENOENT, ENOTDIR, ENOTEMPTY, EROFS, ENOSPC, EACCES; ESTALE for what was exchanged; nothing has changed
            then.
    """
    state.writable()
    target = existing(state, directory, name)
    with state.table.held(target):
        if not isinstance(target, Directory):
            raise os_error(errno.ENOTDIR, name)
        if not target.lowers and not target.children:
            try:
                yield from remove_directory(state, target, directory, name, if_empty=True)
                return
            except OSError as error:
                if error.errno not in _NOT_EMPTY:
                    raise
        if not (yield from found_empty(state, target)):
            raise os_error(errno.ENOTEMPTY, name)
        if directory.children.get(name) is not target:
            raise os_error(errno.ENOENT, name)  # somebody else was quicker
        yield from remove_directory(state, target, directory, name)


def remove_directory(
    state: State, target: Directory, directory: Directory, name: bytes, *, if_empty: bool = False
) -> Steps[None]:
    """Remove a directory with whatever is in it, visible or not.

    Precondition: no inode beneath it is in the table.

    Args:
        if_empty: refuse one that has anything in it, visible or not, or that needs a whiteout.

    Raises:
        OSError: as `rmdir`; nothing has changed then.
    """
    upper = copy_up_directory(state, directory)
    side = state.writable()
    positive = lower_is_positive(state, directory, name)
    if if_empty and positive:
        raise os_error(errno.ENOTEMPTY, name)
    garbage: bytes | None = None
    if target.upper is None:
        side.whiteouts.cover(upper, name)
    else:
        held = upper.hold(name)
        try:
            target.recognise(os.fstat(held))
            garbage = _take_out(state, target, upper, name, positive=positive, if_empty=if_empty)
        except BaseException:
            os.close(held)
            raise
        target.upper.pin(held)
    directory_gone(state, target, directory, name)
    if garbage is not None:
        try:
            yield from side.work.removal(garbage)
        except OSError as error:
            # The directory is gone for the user; what resists is garbage in work. On a filesystem of paths these are
            # files that somebody has open.
            level = logging.WARNING if side.layer.keeps_removed else logging.DEBUG
            state.log.log(level, "cannot remove %r from the work directory: %s", garbage, error)


def _take_out(
    state: State, target: Directory, upper: RealDir, name: bytes, *, positive: bool, if_empty: bool
) -> bytes | None:
    """Remove a directory from the upper.

    Returns:
        Its name in the work directory; None when there is nothing left to remove.

    Raises:
        OSError: nothing has changed then, or it is ESTALE and somebody else's directory stays in work.
    """
    side = state.writable()
    if positive:
        removed = side.whiteouts.replace_directory(upper, name)
    else:
        try:
            upper.rmdir(name)
            return None
        except OSError as error:
            if if_empty or error.errno not in _NOT_EMPTY:
                raise
        removed = side.work.take(upper, name)  # whiteouts are in it
    try:
        target.recognise(side.work.tmp.object(removed).stat())
    except OSError as error:
        if _put_back(state, removed, upper, name, covered=positive) or error.errno == errno.ESTALE:
            raise
        return None  # it was recognised just before, and has gone from the tree: only what is in it is left alone
    return removed


def _put_back(state: State, taken: bytes, upper: RealDir, name: bytes, *, covered: bool) -> bool:
    """Give a name back to what was there just before it was taken, whatever has the name now.

    Args:
        covered: a whiteout was put there instead.

    Returns:
        False when it is not possible; that is logged.
    """
    whiteouts = state.writable().whiteouts
    try:
        occupied = upper.stat(name) is not None
    except OSError:
        occupied = covered and state.writable().work.capabilities.whiteout_devices
    try:
        whiteouts.install(taken, upper, name, is_directory=True, occupied=occupied)
    except OSError as error:
        state.log.error("%r, which may not be what was to be removed, stays in work as %r: %s", name, taken, error)
        return False
    whiteouts.drop_file_mark(upper, name)
    return True


def holding(file: File, upper: RealDir, name: bytes) -> AbstractContextManager[bool]:
    """Hold a file by a descriptor while, in the block, a name that may be the one that leads to it goes.

    The block is told whether the name has been recognised for that.
    """
    return file.holding() if file.is_at(upper, name) else nullcontext(enter_result=False)


def name_gone(state: State, file: File, directory: Directory, name: bytes) -> None:
    """Keep the inodes true after a non-directory lost a name. It cannot fail: the name is gone."""
    directory.children.pop(name, None)
    directory.stale()
    file.remove_name(directory, name)
    file.stale()
    if directory.upper is not None and file.is_at(directory.upper, name):
        others = [(place.upper, other) for place, other in file.names() if place.upper is not None]
        file.lost_name(others if file.group is None else [*others, file.group.copy])
    if file.group is not None:
        _end_group(state, file)


def _end_group(state: State, file: File) -> None:
    """Forget what the link index holds of a file of which no name is left."""
    assert file.group is not None
    try:
        st = stat_of(state, file)
        if nlink_of(state, file, st):
            if file.removed and (not file.has_upper or st.st_nlink == 1):
                state.writable().links.suspect(file.group)
            return
        file.unlinked()
    except OSError as error:
        state.log.warning("the link index keeps inode %d: %s", file.ino, error)
        return
    file.group.remove()
    file.stale()


def directory_gone(state: State, target: Directory, directory: Directory, name: bytes) -> None:
    """Keep the inodes true after a directory was removed."""
    directory.children.pop(name, None)
    directory.stale()
    for child in list(target.children.values()):
        state.log.error("inode %d was left in a removed directory", child.ino)
    target.mark_removed()
    state.restacked(target)
