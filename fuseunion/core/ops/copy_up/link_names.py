"""Files with several names: what the link index (core/marks/link_index.py) and the upper have to hold for them.

A lower file with several names is copied up under one of them. The others go on leading to the copy through the index,
and get links of it in the upper as they are met, so that every reader of the upper sees as much of the group as is
known.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.format.link_entries import key_of, key_of_number, token_of
from fuseunion.core.marks.link_index import LinkGroup
from fuseunion.core.marks.origin_mark import path_of
from fuseunion.core.ops.copy_up.directories import copy_up_directory
from fuseunion.core.ops.copy_up.origin_paths import note_path
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.lookup import lookup, lower_name
from fuseunion.core.tree.state import State
from fuseunion.linux.objects.permission import as_owner

log = logging.getLogger("fuseunion.links")


# -- lower names that go --------------------------------------------------------------------------------------------


def _token(state: State, real: RealDir, name: bytes) -> bytes:
    """The link index's token for a name in a lower directory."""
    st = real.own_stat()
    return token_of(state.numbers.number(st.st_dev, st.st_ino), name)


def covering(state: State, group: LinkGroup | None, directory: Directory, name: bytes) -> AbstractContextManager[None]:
    """Count the lower name of a group as gone while the upper's takes its place in the block (LinkGroup.covering)."""
    found = lower_name(state, directory, name) if group is not None else None
    if found is None or group is None:
        return nullcontext()
    real = found[0]
    return group.covering(_token(state, real, name), path_of(real, name))


@contextmanager
def covering_lower_name(state: State, directory: Directory, name: bytes) -> Iterator[None]:
    """Count a name of a lower file with several names as gone, while it goes in the block."""
    found = lower_name(state, directory, name)
    if found is None or found[1].st_nlink < 2:
        yield
        return
    st = found[1]
    number = state.numbers.number(st.st_dev, st.st_ino)
    group = state.writable().links.get_or_new(key_of(number, st), number, st.st_nlink)
    with covering(state, group, directory, name):
        yield
    known = state.table.find_lower((st.st_dev, st.st_ino))
    if known is not None:
        known.group = group


# -- names that are met -----------------------------------------------------------------------------------------------


def complete(state: State, file: File, directory: Directory, name: bytes) -> None:
    """Bring what is kept of a file's names up to date with one that was looked up. A failure is logged.

    A lower name that shows the lower file counts, whatever the index says: the upper was changed by hand, or a crash
    came in between. A name of a file that was copied up gets its link in the upper.
    """
    if file.group is None or state.upper is None:
        return
    if file.group.covered and (directory.upper is None or directory.upper.stat(name) is None):
        found = lower_name(state, directory, name)
        token = _token(state, found[0], name) if found is not None else b""
        if token in file.group.covered:
            file.group.uncover(token)
            file.stale()
    if file.in_upper:
        try_link_name(state, file, directory, name)


def repair(state: State) -> None:
    """After a mount that was killed: names that the link index counts as gone, but that are there, count again.

    By directories, each of which is kept while its names are looked up: it is listed when it is met (`.wh.` files), and
    would be again for each name.
    """
    if state.upper is None or not state.upper.links.was_killed:
        return
    counted: dict[bytes, list[bytes]] = {}
    for group in state.upper.links.groups():
        for token in group.covered:
            try:
                way, _, name = group.covered_path(token).rpartition(b"/")
            except OSError as error:
                log.warning("cannot tell whether a name of inode %d is still there: %s", group.number, error)
                continue
            counted.setdefault(way, []).append(name)
    for way, names in sorted(counted.items()):
        try:
            _see(state, way.split(b"/") if way else [], sorted(names))
        except OSError as error:
            log.warning("cannot tell what there is in %r: %s", way, error)


def _see(state: State, way: list[bytes], names: list[bytes]) -> None:
    """Look names up in a directory that may not be there any more."""
    directory = state.root
    for part in way:
        found = lookup(state, directory, part) if _is_name(part) else None
        if not isinstance(found, Directory):
            state.table.drop_if_unused(directory if found is None else found)
            return
        directory = found
    with state.table.held(directory):
        for name in filter(_is_name, names):
            try:
                inode = lookup(state, directory, name)
                if isinstance(inode, File):
                    complete(state, inode, directory, name)
                if inode is not None:
                    state.table.drop_if_unused(inode)
            except OSError as error:
                log.warning("cannot tell whether %r is still there: %s", name, error)


def _is_name(name: bytes) -> bool:
    """False for what was cut off when the process was killed, or not written by us."""
    return b"\0" not in name and name not in (b"", b".", b"..")


# -- links in the upper -----------------------------------------------------------------------------------------------


def link_name(state: State, file: File, directory: Directory, name: bytes) -> None:
    """Link one more name of a lower file, which was copied up under another, into the upper.

    Raises:
        OSError: EROFS, ENOSPC, EDQUOT, EMLINK, EACCES; the name then goes on showing the copy through the link index.
    """
    target = copy_up_directory(state, directory)
    if target.stat(name) is not None:
        return
    with covering(state, file.group, directory, name), target.times_kept():
        link_into(file, target, name)
    directory.stale()  # its times are others where they could not be kept
    file.leads_to(target, name)
    file.stale()


def try_link_name(state: State, file: File, directory: Directory, name: bytes) -> None:
    """`link_name` where it is a service to others and not what the user asked for: a failure is logged."""
    try:
        link_name(state, file, directory, name)
    except OSError as error:
        log.warning("name %r of a copied-up file stays out of the upper: %s", name, error)


def link_into(file: File, target: RealDir, name: bytes) -> None:
    """Make one more link of an object of the upper.

    Raises:
        OSError: as linkat(2); ENOENT for an object without any link.
    """
    if file.location() is None and file.group is not None:
        # What a descriptor alone holds may have no link, and cannot be given one; the index has one.
        real, copy = file.group.copy
        real.object(copy).link(target.fd(), name)
        return
    # By what is held and recognised, not by a name that may lead elsewhere.
    with file.grasp() as held:
        as_owner(lambda: held.link(target.fd(), name), target)


@contextmanager
def number_kept(state: State, file: File) -> Iterator[None]:
    """Let all names of a copy show the lower's number after a remount, when it gets one more in the block.

    Its origin mark gets the lower's path; where that cannot be kept, the number goes into the link index.
    """
    kept = [note_path(state, file, known, name) for known, name in file.names()] if file.group is None else []
    if all(kept):
        yield
        return
    links = state.writable().links
    group = links.get_or_new(key_of_number(file.ino), file.ino, 0)
    with file.grasp() as held:
        group.add_copy(held, held.stat())
    try:
        yield
    except BaseException:
        group.drop_copy()
        raise
    file.group = group
