"""Completing the origin marks of what leaves the place of its lower.

A mark (origin.py) is short while the copy lies where its lower lies. Before a copy is renamed, or gets a second name,
the lower's path is put into its mark: otherwise the name that is elsewhere would show another number after a remount.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from fuseunion.core import origin, xattrs
from fuseunion.core.inode import Directory
from fuseunion.core.lookup import FoundFile, lookup, resolve
from fuseunion.core.readdir import candidates
from fuseunion.core.realdir import as_owner_of, proc_fd
from fuseunion.core.state import State
from fuseunion.core.work import opened


def note_path(state: State, directory: Directory, name: bytes) -> bool:
    """Complete the origin mark of an object that leaves the place of its lower (origin.py).

    Returns:
        False when the object has a mark that cannot be completed: its path is too long, or there is no space for it.
    """
    prefix = state.writable().work.capabilities.xattr_prefix
    if prefix is None or directory.upper is None or not directory.lowers:
        return True
    with directory.upper.held(name) as fd:
        try:
            value = as_owner_of(fd, lambda: os.getxattr(proc_fd(fd), prefix + xattrs.UNION_ORIGIN))
        except OSError as error:
            if error.errno not in origin.NO_MARK:
                raise
            return True
        if origin.has_path(value):
            return True
        found = resolve(state, directory.lowers, name)
        real = found.real if isinstance(found, FoundFile) else found.stack[0].parent if found is not None else None
        if real is None:
            return True  # the lower was changed: the mark is no longer true
        completed = origin.with_path(value, origin.path_of(real, name))
        return completed is not None and as_owner_of(fd, lambda: origin.rewrite(fd, prefix, completed))


def note_paths_below(state: State, directory: Directory) -> None:
    """Complete the marks of all that moves along with a directory."""
    with ExitStack() as held:
        waiting = [directory]
        while waiting:
            current = waiting.pop()
            with opened(current.upper):
                for name in candidates(current):
                    child = lookup(state, current, name)
                    if isinstance(child, Directory) and child.lowers:
                        held.enter_context(state.table.held(child))
                        waiting.append(child)
                    if child is not None:
                        with state.table.held(child):
                            note_path(state, current, name)
