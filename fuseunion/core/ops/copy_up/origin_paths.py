"""Completing the origin marks of what leaves the place of its lower.

A mark (origin_mark.py) is short while the copy lies where its lower lies. Before a copy is renamed, or gets a second
name, the lower's path is put into its mark: otherwise the name that is elsewhere would show another number after a
remount.
"""

from __future__ import annotations

from fuseunion.core.format import xattr_names
from fuseunion.core.marks import origin_mark
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.inode import Inode
from fuseunion.core.tree.lookup import FoundFile, resolve_below
from fuseunion.core.tree.state import State
from fuseunion.linux.objects.permission import as_owner_of


def needs_no_path(inode: Inode) -> bool:
    """Whether an object is known to have no origin mark without a path."""
    return xattr_names.UNION_ORIGIN in inode.absent_xattrs


def note_path(state: State, inode: Inode, directory: Directory, name: bytes) -> bool:
    """Complete the origin mark of an object that leaves the place of its lower (origin_mark.py).

    Args:
        inode: what the name leads to, or rather led to.

    Returns:
        False when the object has a mark that cannot be completed: its path is too long, or there is no space for it.

    Raises:
        OSError: ESTALE when the name leads to another object now; of the system calls.
    """
    prefix = state.writable().work.capabilities.xattr_prefix
    if prefix is None or directory.upper is None or not directory.lowers or needs_no_path(inode):
        return True
    with directory.upper.held(name) as held:
        inode.recognise(held.stat())
        try:
            value = as_owner_of(held, lambda: held.getxattr(prefix + xattr_names.UNION_ORIGIN))
        except OSError as error:
            if error.errno not in origin_mark.NO_MARK:
                raise
            return True
        if origin_mark.has_path(value):
            return True
        found = resolve_below(state, directory, name)
        real = found.real if isinstance(found, FoundFile) else found.stack[0].parent if found is not None else None
        if real is None:
            return True  # the lower was changed: the mark is no longer true
        completed = origin_mark.with_path(value, origin_mark.path_of(real, name))
        if completed is None:
            return False
        inode.stale()  # its time of change will be another
        return as_owner_of(held, lambda: origin_mark.rewrite(held, prefix, completed))
