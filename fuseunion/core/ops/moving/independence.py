"""Directories that depend on their place no more: before one is renamed, the lowers must have no part in it.

Nobody sees anything of this. It takes long for a large tree, so it is done in steps, and the mount goes on meanwhile:

    1  every directory below is copied up, every file is handed to the caller to be copied up, and each gets the path of
       its lower object into its origin mark, so that it keeps its number elsewhere
    2  in one piece: the directory is marked opaque on disk, and in memory the lowers leave it and all that is below it
    3  whiteouts below it, which hide nothing any more, are removed: the kernel would list them as device nodes

Why nothing has to be looked at again before the second part, whatever others do meanwhile: what was copied up stays
copied up, a mark that was completed stays complete, and nothing that needs either comes into the tree. What is made
there has no lower. What is renamed or linked into it was made independent, or had its mark completed, by that very
operation. What goes leaves a whiteout, so that its lower does not come back. A directory that is renamed out of the
tree, or with the tree, is independent by then, and is passed over.

What is cut off leaves a tree that is copied up in part, with marks that are true in every place.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from typing import TypeAlias

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.marks.marks import is_whiteout
from fuseunion.core.ops.copy_up.directories import copy_up_directory
from fuseunion.core.ops.copy_up.link_names import link_name
from fuseunion.core.ops.copy_up.origin_paths import note_path
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.listing import found_empty, listing
from fuseunion.core.tree.lookup import lookup
from fuseunion.core.tree.state import State
from fuseunion.linux.objects.permission import opened
from fuseunion.linux.os_error import os_error
from fuseunion.steps import Steps

Preparation: TypeAlias = Generator[Sequence[File] | None, None, None]
"""Steps that also say which files have to be copied up before they go on."""

_AT_ONCE = 16
"""Names between two stops: some milliseconds."""


class _Prepared:
    """A directory of which everything is in the upper.

    Attributes:
        hidden: the names under which nothing was to be seen.
        complete: those are all, because the directory did not change from then until it was detached.
    """

    __slots__ = ("_changes", "complete", "directory", "hidden")

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.hidden: list[bytes] = []
        self.complete = False
        self._changes = directory.changes

    def detach(self) -> None:
        """The lowers take no part in it any more."""
        self.complete = self.directory.changes == self._changes
        self.directory.detach()


def make_independent(state: State, directory: Directory) -> Preparation:
    """Make a directory independent of the lowers; it changes nothing where no lower takes part in it.

    Raises:
        OSError: as a copy-up.
    """
    if not directory.lowers:
        return
    with ExitStack() as held:
        held.enter_context(state.table.held(directory))
        prepared: list[_Prepared] = []
        waiting = [directory]
        while waiting:
            current = waiting.pop()
            if not _is_dependent(current):
                continue
            copy_up_directory(state, current)
            if current is not directory and current.parent is not None:
                note_path(state, current, current.parent, current.name)
            one = _Prepared(current)
            prepared.append(one)
            names = yield from listing(state, current)
            for start in range(0, len(names), _AT_ONCE):
                waiting += yield from _prepare_some(state, one, names[start : start + _AT_ONCE], held)
        if _is_dependent(directory):
            _mark_opaque(state, directory, prepared)
        for one in prepared:
            one.detach()
            state.restacked(one.directory)
        for one in prepared:
            yield from _drop_useless_whiteouts(one.directory, one.hidden if one.complete else None)


def _is_dependent(directory: Directory) -> bool:
    """Whether there is something to do: somebody else may have removed it, or made it independent."""
    return bool(directory.lowers) and not directory.removed


def _prepare_some(
    state: State, one: _Prepared, names: Sequence[bytes], held: ExitStack
) -> Generator[Sequence[File] | None, None, list[Directory]]:
    """Prepare some of the names of a directory.

    Args:
        held: what keeps directories in the table.

    Returns:
        The directories among them that are to be prepared as well.
    """
    directory = one.directory
    files: list[tuple[bytes, File]] = []
    below: list[Directory] = []
    if not _is_dependent(directory):
        return below
    with ExitStack() as kept:
        with opened(directory.upper):
            for name in names:
                child = lookup(state, directory, name)
                if child is None:
                    one.hidden.append(name)
                    continue
                is_next = isinstance(child, Directory) and child.lowers
                (held if is_next else kept).enter_context(state.table.held(child))
                if isinstance(child, File):
                    files.append((name, child))
                elif isinstance(child, Directory) and is_next:
                    below.append(child)
                else:
                    note_path(state, child, directory, name)
        yield [file for _, file in files if not file.in_upper] or None
        with opened(directory.upper):
            for name, file in files:
                # While others were copied, the name may have gone, or come to mean another file.
                if directory.children.get(name) is file:
                    if file.group is not None:
                        link_name(state, file, directory, name)
                    note_path(state, file, directory, name)
        yield None
    return below


def _mark_opaque(state: State, top: Directory, prepared: Sequence[_Prepared]) -> None:
    """Mark a directory so that nothing of the lowers shows in it after a remount.

    Raises:
        OSError: of setting the mark; nothing that is seen has changed then.
    """
    for one in prepared:
        directory = one.directory
        if _is_dependent(directory) and (directory is top or _is_redirected(directory)):
            assert directory.upper is not None, "it is prepared"
            with directory.grasp() as itself:
                state.writable().whiteouts.make_opaque(itself, directory.upper)


def _is_redirected(directory: Directory) -> bool:
    """Whether a lower's part of a directory comes from elsewhere than the parent's lowers (an absolute redirect)."""
    beside = directory.parent.lowers if directory.parent is not None else ()
    return any(real.parent not in beside for real in directory.lowers)


def _drop_useless_whiteouts(directory: Directory, names: list[bytes] | None) -> Steps[None]:
    """Remove the whiteouts in a directory that no lower takes part in.

    Args:
        names: what may be whiteouts; None for every name.
    """
    upper = directory.upper
    assert upper is not None, "what lies in a lower alone is not renamed"
    if names is None:
        names = []
        for some in upper.scan() if not directory.removed else ():
            names += some
            yield
    for start in range(0, len(names), _AT_ONCE):
        if not directory.removed:
            _drop_whiteouts(upper, [name for name in names[start : start + _AT_ONCE] if name not in directory.children])
        yield


def _drop_whiteouts(upper: RealDir, names: Sequence[bytes]) -> None:
    with opened(upper):
        useless: list[bytes] = []
        for name in names:
            st = upper.stat(name)
            if st is not None and is_whiteout(upper, name, st):
                useless.append(name)
        if useless:
            with upper.times_kept():
                for name in useless:
                    upper.unlink(name)


def make_replaceable(state: State, target: Directory) -> Preparation:
    """Make a directory that something is to be renamed over as empty as it looks.

    Raises:
        OSError: ENOTEMPTY; of the layers.
    """
    with state.table.held(target):
        if not (yield from found_empty(state, target)):
            raise os_error(errno.ENOTEMPTY, target.name)
        if target.upper is None:
            return
        if target.lowers:
            yield from make_independent(state, target)
        else:
            yield from _drop_useless_whiteouts(target, None)
