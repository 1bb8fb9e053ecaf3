"""Whole entries, for tools that bring a finished tree into the upper: put, linked over, removed, uncovered.

The system calls of a user change one thing at a time and refuse what is in the way. A tool says how the end is to look:
each call here puts that in the place of whatever is there, and shows the state before or after it whenever it is cut
off.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import nullcontext

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.marks.marks import is_device, is_whiteout
from fuseunion.core.ops import create
from fuseunion.core.ops.copy_up.directories import copy_up_directory
from fuseunion.core.ops.copy_up.link_names import covering_lower_name, link_into
from fuseunion.core.ops.copy_up.origin_paths import note_path
from fuseunion.core.ops.removing.remove import holding, name_gone, remove_directory, unlink
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.lookup import FoundFile, existing, lookup, resolve_below
from fuseunion.core.tree.state import State
from fuseunion.linux.os_error import os_error
from fuseunion.steps import in_one_piece

Make = Callable[[RealDir, bytes], None]
"""`make(directory, name)` makes an object under a name that is free in a directory of the upper's filesystem."""


def put(state: State, directory: Directory, name: bytes, make: Make) -> None:
    """Put a finished object that is no directory in the place of whatever file, or whiteout, is there.

    Args:
        make: makes the object, owner, attributes, mode and times included. What it has made is removed when it fails.

    Raises:
        OSError: what `make` raises; EROFS, ENOSPC, EDQUOT; EISDIR where a directory is in the way.
    """
    work = state.writable().work
    temporary = work.new_name()
    try:
        make(work.tmp, temporary)
        _show(state, directory, name, temporary)
    except BaseException:
        work.remove_tree(temporary)
        raise


def _show(state: State, directory: Directory, name: bytes, temporary: bytes) -> None:
    side = state.writable()
    upper = copy_up_directory(state, directory)
    replaced = lookup(state, directory, name)
    if isinstance(replaced, Directory):
        raise os_error(errno.EISDIR, name)
    with state.table.held(replaced):
        held = holding(replaced, upper, name) if isinstance(replaced, File) else nullcontext()
        with held, covering_lower_name(state, directory, name):
            occupied = upper.stat(name) is not None
            side.whiteouts.install(temporary, upper, name, is_directory=False, occupied=occupied)
        # Everybody sees the object from here on: nothing may fail any more.
        side.whiteouts.drop_file_mark(upper, name)
        if isinstance(replaced, File):
            name_gone(state, replaced, directory, name)
        directory.stale()


def link_over(state: State, file: File, directory: Directory, name: bytes) -> None:
    """Give a copied-up file one more name, in the place of whatever other file has it.

    Precondition: the file was copied up.

    Raises:
        OSError: as linkat(2) and `put`; EMLINK, EPERM where the file can have no more names.
    """
    replaced = lookup(state, directory, name)
    if replaced is None:
        create.link(state, file, directory, name)
        return
    if replaced is file:
        return  # rename(2) of one name of a file over another does nothing
    for known, known_name in file.names():
        note_path(state, file, known, known_name)
    put(state, directory, name, lambda tmp, temporary: link_into(file, tmp, temporary))
    file.add_name(directory, name)
    file.stale()
    state.table.note_names(file)
    directory.children[name] = file


def remove(state: State, directory: Directory, name: bytes) -> None:
    """Remove a name with all that is beneath it: a whiteout where a lower shows it.

    Precondition: no inode beneath a directory is in the table.

    Raises:
        OSError: ENOENT, EROFS, ENOSPC (a whiteout needs an inode), EACCES; nothing has changed then.
    """
    state.writable()
    inode = existing(state, directory, name)
    if not isinstance(inode, Directory):
        unlink(state, directory, name)
        return
    with state.table.held(inode):
        in_one_piece(remove_directory(state, inode, directory, name))


def uncover(state: State, directory: Directory, name: bytes) -> None:
    """Let a name of the lowers show again that a whiteout hides; the directory is copied up if it was not.

    Raises:
        OSError: EROFS, EACCES.
    """
    upper = copy_up_directory(state, directory)
    st = upper.stat(name)
    if st is not None and is_whiteout(upper, name, st):
        upper.unlink(name)
    state.writable().whiteouts.drop_file_mark(upper, name)
    directory.stale()


def cover(state: State, directory: Directory, name: bytes) -> None:
    """Hide a name of the lowers, whether one has it or not: for an upper that is made for other lowers than these.

    Precondition: the union shows nothing of that name.

    Raises:
        OSError: as create.create; ENOSPC: a whiteout needs an inode.
    """
    create.check_name(name)
    upper = copy_up_directory(state, directory)
    if upper.stat(name) is None and not upper.hides(name):
        state.writable().whiteouts.cover(upper, name)
        directory.stale()


def make_opaque(state: State, directory: Directory) -> None:
    """Let nothing of the lowers show in a directory, as `cover`. Precondition: no lower takes part in it.

    Raises:
        OSError: of setxattr(2), or of making a file.
    """
    upper = copy_up_directory(state, directory)
    with directory.grasp() as held:
        state.writable().whiteouts.make_opaque(held, upper)
    directory.stale()


def lower_stat(state: State, directory: Directory, name: bytes) -> os.stat_result | None:
    """lstat of what the lowers show, or would show without the upper, under a name; None for nothing.

    Raises:
        OSError: of the layers.
    """
    found = resolve_below(state, directory, name)
    if found is None:
        return None
    return found.st if isinstance(found, FoundFile) else found.stats[0]


def check_storable(name: bytes, st: os.stat_result) -> None:
    """Refuse an object that would be a mark in the upper.

    Raises:
        OSError: EINVAL for the name of a whiteout, ENAMETOOLONG; EPERM for a 0/0 character device, which is a whiteout
            (fs/overlayfs/dir.c ovl_mknod).
    """
    create.check_name(name)
    if is_device(st):
        raise os_error(errno.EPERM, name)
