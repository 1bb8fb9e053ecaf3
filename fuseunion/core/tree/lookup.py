"""Which layers make up directory/name, and which inode that is.

The rules are those of fs/overlayfs/namei.c ovl_lookup and ovl_lookup_layer. Down the stack of the parent:

    nothing          go on with the next layer
    whiteout         end
    non-directory    the object, unless a directory was found above; end
    directory        joins the stack; if it is opaque, end
    `.wh.NAME`       the layers below are hidden; end
    redirect         a directory that says where it was before it was renamed (redirect_dir=on): the layers below are
                     asked for that name; for an absolute path, each from its root

But for an absolute redirect only directories of the parent's own stack are asked, so what a parent hides stays hidden
in all its descendants. What is looked for is carried down, layer by layer, and never looked up as a name of the union:
so one lookup goes over one path in each layer, whatever the layers hold.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.wh_files import is_reserved
from fuseunion.core.format import xattr_names
from fuseunion.core.format.link_entries import key_of
from fuseunion.core.format.numbers import Ino
from fuseunion.core.marks import metacopy
from fuseunion.core.marks.holders import DEEP
from fuseunion.core.marks.link_index import LinkGroup
from fuseunion.core.marks.marks import is_marked_whiteout, is_opaque, is_whiteout, marks_of
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File, LowerLinks
from fuseunion.core.tree.inode import Inode, Unreadable
from fuseunion.core.tree.place import Held, InLower, InUpper, Place
from fuseunion.core.tree.state import State
from fuseunion.linux.objects.permission import opened
from fuseunion.linux.objects.recognition import DiskId, id_of
from fuseunion.linux.os_error import os_error

log = logging.getLogger("fuseunion.lookup")

_PATH_MAX = 4096
"""Bytes of a path with the NUL at its end (limits.h)."""


class FoundFile(NamedTuple):
    """A non-directory: where, its lstat, and the marks on it if it was read from a layer that can have some; and where
    its data is, if not there (metacopy)."""

    real: RealDir
    st: os.stat_result
    marks: dict[bytes, bytes]
    data: InLower | None = None


class FoundDirectory(NamedTuple):
    """The stack of a directory, topmost first, with the lstat of each, and the marks on the topmost."""

    stack: list[RealDir]
    stats: list[os.stat_result]
    marks: dict[bytes, bytes]


def resolve_in(state: State, directory: Directory, name: bytes) -> FoundFile | FoundDirectory | None:
    """Find `name` in the stack of a directory. Raises as `resolve`."""
    upper = directory.upper
    if len(directory.lowers) < DEEP:
        return resolve(state, directory.layers(), name)
    lowers = lowers_with(state, directory, name)
    return resolve(state, directory.layers(), name, lowers if upper is None else (upper, *lowers))


def resolve_below(state: State, directory: Directory, name: bytes) -> FoundFile | FoundDirectory | None:
    """Find what `name` would be without the upper. Raises as `resolve`."""
    return resolve(state, directory.lowers, name, lowers_with(state, directory, name))


def lowers_with(state: State, directory: Directory, name: bytes) -> tuple[RealDir, ...]:
    """The lowers of a directory that may hold a name, or hide it from those below, topmost first (holders.py)."""
    lowers = directory.lowers
    if len(lowers) < DEEP:
        return lowers
    holders = directory.holders
    if holders is None or holders.stack is not lowers:
        holders = directory.holders = state.holders.learn(lowers)
    return holders.of(name)


def resolve(
    state: State, stack: Sequence[RealDir], name: bytes, asked: Sequence[RealDir] | None = None
) -> FoundFile | FoundDirectory | None:
    """Find `name` in a stack of real directories.

    Args:
        asked: those of the stack that may hold the name, or hide it; None for all.

    Raises:
        OSError: EPERM for a file whose data lies elsewhere (metacopy) if that is not believed, EIO if the data is
            missing; EINVAL for a malformed redirect; EIO and the like from the layers.
    """
    directories: list[RealDir] = []
    stats: list[os.stat_result] = []
    top_marks: dict[bytes, bytes] = {}
    last_marks: dict[bytes, bytes] = {}
    last = stack[-1] if stack else None
    if asked is None:
        asked = stack
    index = 0
    while index < len(asked):
        real = asked[index]
        index += 1
        below = real is not last
        st = real.stat(name)
        if st is not None:
            if not stat.S_ISDIR(st.st_mode):
                if is_whiteout(real, name, st) or directories:
                    break
                marks = marks_of(real, name, st) if below or real.layer.writable else {}
                data = _data_of(state, real, name, st, stack[index:]) if xattr_names.METACOPY in marks else None
                return FoundFile(real, st, marks, data)
            if directories and is_opaque(directories[-1], last_marks):
                break
            child = real.child(name, st)
            # An absolute redirect leads to layers that take no part in the parent.
            last_marks = marks_of(real, name, st) if below or not _is_lowest(state, real) else {}
            if not directories:
                top_marks = last_marks
            directories.append(child)
            stats.append(st)
            redirect = last_marks.get(xattr_names.REDIRECT)
            if redirect is not None and not is_opaque(child, last_marks):
                path = _redirect_path(redirect)
                if redirect.startswith(b"/"):
                    _follow(state, real, path, directories, stats)
                    break
                (name,) = path
                asked, index = stack, stack.index(real) + 1
                continue  # a `.wh.` file beside it hides the name that it has here
        if below and real.hides(name):
            break
    return FoundDirectory(directories, stats, top_marks) if directories else None


def _is_lowest(state: State, real: RealDir) -> bool:
    return real.layer is state.root.lowers[-1].layer


def _redirect_path(redirect: bytes) -> list[bytes]:
    """The names in the value of a redirect: one, or those of an absolute path.

    Raises:
        OSError: EINVAL for a redirect that overlayfs would not accept either (fs/overlayfs/namei.c
            ovl_get_redirect_xattr), or that is longer than a path may be: overlayfs writes none above 256 bytes
            (fs/overlayfs/super.c ovl_redirect_max).
    """
    absolute = redirect.startswith(b"/")
    names = redirect[absolute:].split(b"/")
    strange = not all(names) or b"." in names or b".." in names or b"\0" in redirect
    if strange or (len(names) > 1 and not absolute) or len(redirect) >= _PATH_MAX:
        log.error("malformed redirect %r; refused", redirect[:100])
        raise xattr_names.malformed()
    return names


def _follow(
    state: State, above: RealDir, path: list[bytes], directories: list[RealDir], stats: list[os.stat_result]
) -> None:
    """Add what the layers below that of `above` have at a path from their roots (fs/overlayfs/namei.c
    ovl_lookup_layer).

    A directory on the way may be redirected itself, which changes the path for the layers below; one that is opaque, or
    anything that is no directory, ends the search after its layer. An absolute redirect further on in the same layer
    takes that back (ovl_check_redirect).

    Args:
        directories: the stack so far.
        stats: the lstat of each.

    Raises:
        OSError: as resolve.
    """
    layers = [root.layer for root in state.root.lowers]
    first = 0 if above.layer.writable else layers.index(above.layer) + 1
    for root in state.root.lowers[first:]:
        names, ended = path, False
        real, found = root, None
        for depth, name in enumerate(names):
            found = real.stat(name)
            if found is None:
                ended = ended or real.hides(name)
                break
            if not stat.S_ISDIR(found.st_mode):
                return
            child = real.child(name, found)
            if not _is_lowest(state, real):
                marks = marks_of(real, name, found)
                redirect = marks.get(xattr_names.REDIRECT)
                if is_opaque(child, marks):
                    ended = True
                elif redirect is None:
                    ended = ended or real.hides(name)
                else:
                    # Counted from the end, since the beginning can change on the way.
                    rest = len(names) - depth
                    absolute = redirect.startswith(b"/")
                    before = [] if absolute else path[: len(path) - rest]
                    path = before + _redirect_path(redirect) + names[depth + 1 :]
                    if sum(map(len, path)) + len(path) >= _PATH_MAX:
                        raise xattr_names.malformed()
                    ended = ended and not absolute
            real = child
        if found is not None:
            directories.append(real)
            stats.append(found)
        if ended:
            return


def _data_of(state: State, real: RealDir, name: bytes, st: os.stat_result, below: Sequence[RealDir]) -> InLower:
    """Where the data of a file lies that has none of its own (fs/overlayfs/namei.c ovl_lookup, `uppermetacopy`).

    Args:
        below: the rest of the stack of its directory.

    Raises:
        MalformedError: EPERM where a mark is not believed, EIO where there is no data; EINVAL for a malformed redirect.
    """
    while True:
        with real.held(name) as held:
            if not os.path.samestat(held.stat(), st):
                raise os_error(errno.ESTALE, name)
            try:
                redirect = metacopy.redirect_of(held, real.layer, asked=state.settings.metacopy)
            except xattr_names.MalformedError:
                log.error("%r in %s holds no data (metacopy); refused", name, real.layer.label)
                raise
        if redirect is not None:
            *parents, name = _redirect_path(redirect)
            if redirect.startswith(b"/"):
                below = _stack_at(state, real, parents)
        found = None
        while below and found is None:
            next_real, *below = below
            found = next_real.stat(name)
            if found is None and next_real.hides(name):
                break
        marks = {} if found is None or _is_lowest(state, next_real) else marks_of(next_real, name, found)
        if found is None or not stat.S_ISREG(found.st_mode) or is_marked_whiteout(found, marks):
            log.error("the data of %r in %s is missing (metacopy); refused", name, real.layer.label)
            raise xattr_names.malformed(errno.EIO)
        if xattr_names.METACOPY not in marks:
            return InLower(next_real, name, *id_of(found))
        real, st = next_real, found


def _stack_at(state: State, above: RealDir, path: list[bytes]) -> Sequence[RealDir]:
    """The directories that the layers below that of `above` have at a path from their roots."""
    if path:
        directories: list[RealDir] = []
        _follow(state, above, path, directories, [])
        return directories
    layers = [root.layer for root in state.root.lowers]
    return state.root.lowers[0 if above.layer.writable else layers.index(above.layer) + 1 :]


def unreadable(state: State, directory: Directory, name: bytes, code: int) -> tuple[Unreadable, os.stat_result]:
    """The inode of a name whose object cannot be understood, so that it can be listed, with the object's lstat.

    Args:
        code: the errno that every use of it answers.

    Raises:
        OSError: ENOENT when it is not there; of the layers.
    """
    for real in directory.layers():
        st = real.stat(name)
        if st is not None:
            number = state.numbers.number(st.st_dev, st.st_ino)
            inode = state.table.find(number)
            if not isinstance(inode, Unreadable):
                inode = Unreadable(state.table.free_number(number), stat.S_IFMT(st.st_mode), code)
                state.table.add(inode)
            return inode, st
    raise os_error(errno.ENOENT, name)


def lower_is_positive(state: State, directory: Directory, name: bytes) -> bool:
    """True when a lower shows something under `name`, so that removing the upper's object needs a whiteout
    (fs/overlayfs/namei.c ovl_lower_positive)."""
    for real in lowers_with(state, directory, name):
        st = real.stat(name)
        if st is not None:
            return not is_whiteout(real, name, st)
        if real.hides(name):
            return False
    return False


def lookup(state: State, directory: Directory, name: bytes) -> Inode | None:
    """The inode of `name`, or None. The inode is in the table: `remember` it or `drop_if_unused`.

    Raises:
        OSError: ENAMETOOLONG for a name that no layer could hold; ESTALE in a directory that has been exchanged; of the
            layers.
    """
    known = directory.children.get(name)
    if known is not None:
        if not known.exchanged:
            return known
        _give_up(state, directory, name)
    if directory.exchanged:
        raise os_error(errno.ESTALE, directory.name)
    if len(name) > 255:
        raise os_error(errno.ENAMETOOLONG, name)
    if directory.removed or is_reserved(name):
        return None
    try:
        return _lookup(state, directory, name)
    except PermissionError:
        if directory.upper is None:
            raise
    with opened(directory.upper):  # closed by its owner, who may list it or move it all the same
        return _lookup(state, directory, name)


def _give_up(state: State, parent: Directory, name: bytes) -> None:
    """Forget that a name was that of a directory which has been exchanged behind our back.

    Who says its number from now on is answered ESTALE. Then the kernel looks the path up again, is told another number,
    and drops what it knows beneath the old one (fs/fuse/dir.c fuse_dentry_revalidate).
    """
    state.table.drop_if_unused(parent.children.pop(name))


def existing(state: State, directory: Directory, name: bytes) -> Inode:
    """As `lookup`, of a name that has to be there, and is what it was when the caller learned of it.

    Raises:
        OSError: ENOENT; ESTALE for a directory that has been exchanged; as `lookup`.
    """
    known = directory.children.get(name)
    if known is not None and known.exchanged:
        raise os_error(errno.ESTALE, name)
    inode = lookup(state, directory, name)
    if inode is None:
        raise os_error(errno.ENOENT, name)
    return inode


def _lookup(state: State, directory: Directory, name: bytes) -> Inode | None:
    found = resolve_in(state, directory, name)
    if found is None:
        return None
    inode: Inode
    if isinstance(found, FoundDirectory):
        inode = _directory(state, directory, name, found)
    elif found.real is directory.upper:
        inode = _upper_file(state, directory, name, found)
    else:
        inode = _lower_file(state, directory, name, found)
    directory.children[name] = inode
    return inode


def _directory(state: State, parent: Directory, name: bytes, found: FoundDirectory) -> Directory:
    stack, st = found.stack, found.stats[0]
    upper = stack[0] if parent.upper is not None and stack[0].layer is parent.upper.layer else None
    lowers = tuple(stack[1:] if upper is not None else stack)
    beside = stack[0].parent
    assert beside is not None, "a layer's root is never looked up"
    if lowers:
        numbered = found.stats[-len(lowers)]
        ino = state.numbers.number(numbered.st_dev, numbered.st_ino)
    else:
        ino = _marked_number(state, parent, name, st, found.marks)
    inode = Directory(state.table.free_number(ino), parent, name, upper, lowers)
    inode.st = beside.shown(name, st)
    state.table.add(inode)
    return inode


def _marked_number(state: State, parent: Directory, name: bytes, st: os.stat_result, marks: dict[bytes, bytes]) -> Ino:
    value = marks.get(xattr_names.UNION_ORIGIN)
    if value is not None:
        # What one of several names says of the lower beside it is not what the others would say.
        several = st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode)
        number = state.origins.number(value, st.st_ino, () if several else lowers_with(state, parent, name), name)
        if number is not None:
            return number
    return state.numbers.number(st.st_dev, st.st_ino)


def _upper_file(state: State, parent: Directory, name: bytes, found: FoundFile) -> File:
    st = found.st
    disk_id = (state.numbers.device(st.st_dev), st.st_ino)
    if st.st_nlink > 1:
        known = state.table.find_upper(disk_id)
        if known is not None:
            if isinstance(known.place, Held) or known.removed:
                known.leads_to(found.real, name)
            known.add_name(parent, name)
            return known
    group = state.writable().links.by_copy.get(st.st_ino)
    ino = group.number if group is not None else _marked_number(state, parent, name, st, found.marks)
    shown = found.real.shown(name, st)
    place = InUpper(found.real, name, *disk_id)
    file = _new_file(state, parent, name, ino, shown, place, found.data)
    file.group = group
    if st.st_nlink > 1:
        state.table.note_names(file)
    return file


def _new_file(
    state: State,
    parent: Directory,
    name: bytes,
    ino: Ino,
    shown: os.stat_result,
    place: Place,
    data: InLower | None = None,
) -> File:
    file = File(state.table.free_number(ino), stat.S_IFMT(shown.st_mode), place, data)
    file.st = shown if data is None else None
    file.add_name(parent, name)
    state.table.add(file)
    return file


def _lower_file(state: State, parent: Directory, name: bytes, found: FoundFile) -> File:
    st = found.st
    ino = state.numbers.number(st.st_dev, st.st_ino)
    links, group = None, None
    if st.st_nlink > 1:
        links = LowerLinks((st.st_dev, st.st_ino), key_of(ino, st))
        group = state.upper.links.get(links.key) if state.upper is not None else None
        known = _known_lower_file(state, links.lower_id, group)
        if known is not None:
            if known.removed and not known.in_upper:
                known.leads_to(found.real, name)
            known.add_name(parent, name)
            return known
    shown = found.real.shown(name, st)
    place: Place
    if links is None:
        place = InLower(found.real, name, state.numbers.device(st.st_dev), st.st_ino)
    else:
        place = InLower(found.real, name, *links.lower_id)
    data = found.data
    if group is not None and group.copy_ino is not None:
        place, data = InUpper(*group.copy, *_copy_id(state, group.copy_ino)), None
    file = _new_file(state, parent, name, ino, shown, place, data)
    if file.in_upper:
        file.stale()
    file.lower_links = links
    file.group = group
    if st.st_nlink > 1:
        state.table.note_names(file)
    return file


def _copy_id(state: State, copy_ino: int) -> DiskId:
    return state.writable().layer.st_dev, copy_ino


def _known_lower_file(state: State, lower_id: DiskId, group: LinkGroup | None) -> File | None:
    """The known file that is the lower file, or the copy of it that was met under a name in the upper."""
    known = state.table.find_lower(lower_id)
    if known is None and group is not None and group.copy_ino is not None:
        known = state.table.find_upper(_copy_id(state, group.copy_ino))
    return known


def lower_name(state: State, directory: Directory, name: bytes) -> tuple[RealDir, os.stat_result] | None:
    """The lower non-directory that `name` shows or would show without the upper, with the directory it lies in."""
    found = resolve_below(state, directory, name)
    if isinstance(found, FoundFile):
        return found.real, found.st
    return None
