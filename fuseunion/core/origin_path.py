"""Completing the origin marks of what leaves the place of its lower.

A mark (origin.py) is short while the copy lies where its lower lies. Before a copy is renamed, or gets a second name,
the lower's path is put into its mark: otherwise the name that is elsewhere would show another number after a remount.
"""

from __future__ import annotations

import os

from fuseunion.core import origin, xattrs
from fuseunion.core.inode import Directory
from fuseunion.core.lookup import FoundFile, lookup, resolve
from fuseunion.core.readdir import candidates
from fuseunion.core.realdir import lent
from fuseunion.core.state import State
from fuseunion.core.work import opened


def note_path(state: State, directory: Directory, name: bytes) -> None:
    """Complete the origin mark of an object that leaves the place of its lower (origin.py)."""
    prefix = state.writable().work.capabilities.xattr_prefix
    if prefix is None or directory.upper is None or not directory.lowers:
        return
    path = directory.upper.proc_path(name)
    try:
        value = os.getxattr(path, prefix + xattrs.UNION_ORIGIN, follow_symlinks=False)
    except OSError:
        return  # created in the upper, or of a kind that holds no xattrs
    found = resolve(state, directory.lowers, name)
    if found is None:
        return
    real = found.real if isinstance(found, FoundFile) else found.stack[0].parent
    completed = origin.with_path(value, origin.path_of(real, name)) if real is not None else None
    if completed is not None:
        try:
            origin.rewrite(path, prefix, completed)
        except PermissionError:
            # user.* needs write permission on the object (fs/xattr.c xattr_permission), which its mode may deny.
            with lent(os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=directory.upper.fd())):
                origin.rewrite(path, prefix, completed)


def note_paths_below(state: State, directory: Directory) -> None:
    """Complete the marks of all that moves along with a directory."""
    waiting = [directory]
    while waiting:
        current = waiting.pop()
        with opened(current.upper):
            for name in candidates(current):
                child = lookup(state, current, name)
                if child is None:
                    continue
                note_path(state, current, name)
                if isinstance(child, Directory) and child.lowers:
                    child.open_count += 1
                    waiting.append(child)
                else:
                    state.table.drop_if_unused(child)
        if current is not directory:
            state.table.let_go(current)
