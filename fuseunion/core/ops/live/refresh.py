"""A lower was changed underneath: what is remembered of it is forgotten, and what its names lead to is looked at anew.

Each directory that is known is gone through. What stays what it is keeps its inode, and so its number, and all who use
it: a file that is the same object, whatever is in it now; a directory that is still one, whichever objects it is made
of. Every other name of a lower is given up, so that the next lookup finds what is there; who still says the number of
what was there is answered ESTALE (File.recognise, RealDir.exchanged). What is in the upper stays as it is.

It is done in steps: others change the tree in between, as they may.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from typing import NamedTuple, TypeAlias

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.ops.live.whereabouts import names_of
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.tree.listing import listing
from fuseunion.core.tree.lookup import FoundDirectory, FoundFile, lookup, resolve_in
from fuseunion.core.tree.state import State
from fuseunion.linux.objects.permission import opened
from fuseunion.linux.objects.recognition import but_number, id_of

_AT_ONCE = 32
"""Names between two stops."""


class Forgotten(NamedTuple):
    """What was forgotten in a directory, and may still be remembered by others.

    Attributes:
        names: that may mean something else than before, or nothing, or had meant nothing.
        inodes: numbers of what may have other attributes.
        files: names of files that may have other data.
    """

    directory: Directory
    names: Sequence[bytes] = ()
    inodes: Sequence[int] = ()
    files: Sequence[bytes] = ()


Refresh: TypeAlias = Generator[Forgotten | None, None, None]
"""Steps, which say what was forgotten; None for nothing."""


def refresh(state: State, path: bytes, is_busy: Callable[[File], bool]) -> Refresh:
    """Forget what is remembered of the lowers at a path and beneath it.

    Args:
        path: from the root; b"" for everything. No symbolic link in it is followed.
        is_busy: whether a file is being copied up: it is left alone, being the upper's soon.

    Raises:
        OSError: EINVAL for `..`; of the layers, for one of the directories on the way.
    """
    with ExitStack() as held:
        directory = state.root
        for name in names_of(path):
            _forget_names(directory)
            yield _entries(state, directory, [name], is_busy)
            inode = lookup(state, directory, name)
            held.enter_context(state.table.held(inode))
            if not isinstance(inode, Directory):
                return
            directory = inode
        waiting = [directory]
        while waiting:
            directory = waiting.pop()
            if state.table.find(directory.ino) is not directory or directory.removed or directory.exchanged:
                continue
            with state.table.held(directory):
                yield from _directory(state, directory, is_busy)
                waiting += (child for child in directory.children.values() if isinstance(child, Directory))


def _directory(state: State, directory: Directory, is_busy: Callable[[File], bool]) -> Refresh:
    _forget_names(directory)
    yield Forgotten(directory, inodes=[directory.ino])
    names = list(directory.children)
    for start in range(0, len(names), _AT_ONCE):
        yield _entries(state, directory, names[start : start + _AT_ONCE], is_busy)
    # What nobody knows here, somebody may know not to be there.
    there = yield from _listed(state, directory)
    unknown = [name for name in there if name not in directory.children]
    for start in range(0, len(unknown), _AT_ONCE):
        yield Forgotten(directory, names=unknown[start : start + _AT_ONCE])


def _listed(state: State, directory: Directory) -> Generator[Forgotten | None, None, Sequence[bytes]]:
    try:
        return (yield from listing(state, directory))
    except OSError:
        return ()  # who lists it is told why


def _forget_names(directory: Directory) -> None:
    directory.stale()
    directory.forget_answers()
    directory.holders = None
    directory.default_acl = None
    for real in directory.lowers:
        real.forget_names()


def _entries(state: State, directory: Directory, names: Sequence[bytes], is_busy: Callable[[File], bool]) -> Forgotten:
    changed: list[bytes] = []
    inodes: list[int] = []
    files: list[bytes] = []
    for name in names:
        child = directory.children.get(name)
        if child is None:
            changed.append(name)
            continue
        if isinstance(child, File) and is_busy(child):
            continue
        inodes.append(child.ino)
        before = child.st
        if not _stays(state, directory, name, child):
            changed.append(name)
            _give_up(state, directory, name, child)
        elif isinstance(child, File) and not child.in_upper and _differs(child, before):
            files.append(name)
    return Forgotten(directory, changed, inodes, files)


def _differs(file: File, before: os.stat_result | None) -> bool:
    """Whether a file may have other data than when it was looked at before."""
    try:
        return before is None or but_number(before) != but_number(file.real_stat())
    except OSError:
        return True  # who asks for it is told why


def _stays(state: State, directory: Directory, name: bytes, child: Inode) -> bool:
    """Whether a name shows what it did; what lies in a lower is found anew."""
    if isinstance(child, File) and child.in_upper:
        return True
    try:
        with opened(directory.upper):
            found = resolve_in(state, directory, name)
            if isinstance(child, Directory):
                return isinstance(found, FoundDirectory) and _is_still_directory(child, found)
            return isinstance(child, File) and isinstance(found, FoundFile) and _is_still_file(child, name, found)
    except OSError:
        # Who looks it up is told why. What the upper has of a directory stays, and with it who is in there.
        return isinstance(child, Directory) and child.upper is not None


def _is_still_directory(directory: Directory, found: FoundDirectory) -> bool:
    first, *rest = found.stack
    if first.layer.writable != (directory.upper is not None):
        return False
    before = {(id(real.parent), real.name): real for real in directory.lowers}
    lowers: list[RealDir] = []
    for real in rest if first.layer.writable else found.stack:
        known = before.pop((id(real.parent), real.name), None)
        if known is not None:
            known.renew()  # whatever has its name is it from now on
        lowers.append(real if known is None else known)
    for gone in before.values():
        gone.give_up()
    directory.made_of(tuple(lowers))
    return True


def _is_still_file(file: File, name: bytes, found: FoundFile) -> bool:
    if file.has_upper:  # with its data in a lower
        same = found.real.layer.writable and found.data == file.data
    else:
        several = found.st.st_nlink > 1
        same = (
            not found.real.layer.writable
            and found.data == file.data
            and id_of(found.st) == file.place.disk_id
            and several == (file.lower_links is not None)
            and stat.S_IFMT(found.real.shown(name, found.st).st_mode) == file.kind
        )
        if same and not several:
            file.leads_to(found.real, name)
    file.stale()
    file.forget_answers()
    return same


def _give_up(state: State, directory: Directory, name: bytes, child: Inode) -> None:
    if isinstance(child, File):
        child.lose_names()
    else:
        del directory.children[name]
        waiting = [child]
        while waiting:
            inode = waiting.pop()
            inode.stale()
            if isinstance(inode, Directory):
                for real in inode.lowers:
                    real.give_up()
                waiting += inode.children.values()
    state.table.drop_if_unused(child)
