"""rename(2), of directories of every kind too.

Overlayfs answers EXDEV for a directory that a lower takes part in, unless it may write redirects. Here one is written
where that was asked for (redirect.py). Else its tree is made independent of the lowers first, in place
(independence.py, driven by the caller because it may take long), which changes nothing that is seen; then it is renamed
like any other. A crash leaves a copied-up tree.

Whether the old name needs a whiteout depends on the lowers of the old parent alone; whether a moved directory has to be
opaque, on those of the new one. Publishing is one rename wherever renameat2 has the flags (whiteout_writer.py).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import NamedTuple

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.wh_files import is_reserved
from fuseunion.core.marks.marks import is_whiteout
from fuseunion.core.ops.copy_up.directories import copy_up_directory
from fuseunion.core.ops.copy_up.link_names import covering_lower_name, link_name
from fuseunion.core.ops.copy_up.origin_paths import needs_no_path, note_path
from fuseunion.core.ops.create import check_name
from fuseunion.core.ops.moving import redirect
from fuseunion.core.ops.removing.remove import directory_gone, holding, name_gone
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.tree.listing import is_empty
from fuseunion.core.tree.lookup import existing, lookup, lower_is_positive
from fuseunion.core.tree.state import State
from fuseunion.linux import syscalls
from fuseunion.linux.objects.recognition import id_of
from fuseunion.linux.os_error import os_error

_FLAGS = syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE | syscalls.RENAME_WHITEOUT


def check_flags(flags: int) -> None:
    """Refuse flags that renameat2(2) does not know.

    Raises:
        OSError: EINVAL.
    """
    both = syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE
    if flags & ~_FLAGS or flags & both == both:
        raise os_error(errno.EINVAL)


class _End(NamedTuple):
    """One end of a rename: a name, and where it is or comes to be in the upper."""

    directory: Directory
    name: bytes
    upper: RealDir


def rename(state: State, old_dir: Directory, old_name: bytes, new_dir: Directory, new_name: bytes, flags: int) -> None:
    """Rename, replace or exchange.

    Precondition: the source (and with RENAME_EXCHANGE the target) was copied up, a directory made independent unless a
    redirect serves.

    Raises:
        OSError: ENOENT, EEXIST, ENOTEMPTY, EISDIR, ENOTDIR, EINVAL, EROFS, ENAMETOOLONG, ENOSPC, EACCES; ESTALE for
            what was exchanged behind our back.
    """
    check_name(new_name)
    source = existing(state, old_dir, old_name)
    target = lookup(state, new_dir, new_name)
    if flags & syscalls.RENAME_NOREPLACE and target is not None:
        raise os_error(errno.EEXIST, new_name)
    if source is target:
        return  # two names of one file (rename(2))
    with state.table.held(source, target):
        old = _End(old_dir, old_name, copy_up_directory(state, old_dir))
        new = _End(new_dir, new_name, copy_up_directory(state, new_dir))
        if isinstance(source, File) and not source.is_at(old.upper, old_name):
            link_name(state, source, old_dir, old_name)  # where it was copied up under another name
        if not flags & syscalls.RENAME_EXCHANGE:
            _replace(state, source, old, target, new, whiteout=bool(flags & syscalls.RENAME_WHITEOUT))
        elif target is None:
            raise os_error(errno.ENOENT, new_name)
        else:
            _exchange(state, source, old, target, new)


def renamed_at_once(state: State, old_dir: Directory, old_name: bytes, new_dir: Directory, new_name: bytes) -> bool:
    """Make the rename that most are: of a file that lies in the upper, to a name that nothing has.

    It takes two system calls where no lower takes part, and asks each lower once where one does.

    Returns:
        False for any other, and for one that fails: nothing has changed then, and `rename` knows what is to be said.
    """
    source, here, there = old_dir.children.get(old_name), old_dir.upper, new_dir.upper
    if (
        here is None
        or there is None
        or not isinstance(source, File)
        or not source.is_at(here, old_name)
        or source.data is not None
        or source.lower_links is not None
        or source.group is not None
        or new_name in new_dir.children
        or is_reserved(new_name)
        or new_dir.removed
        or old_dir.exchanged
        or new_dir.exchanged
        or not state.writable().work.capabilities.noreplace
    ):
        return False
    try:
        if old_dir.lowers and not (needs_no_path(source) and not lower_is_positive(state, old_dir, old_name)):
            return False
        if new_dir.lowers and lower_is_positive(state, new_dir, new_name):
            return False
        st = here.stat(old_name)
        if st is None or id_of(st) != source.disk_id or stat.S_IFMT(st.st_mode) != source.kind:
            return False
        syscalls.renameat2(here.fd(), old_name, there.fd(), new_name, syscalls.RENAME_NOREPLACE)
    except OSError:
        return False
    _renamed(source, _End(old_dir, old_name, here), _End(new_dir, new_name, there))
    state.writable().whiteouts.drop_file_mark(there, new_name)
    return True


def _recognise(inode: Inode, end: _End) -> None:
    """Refuse to move what is not the inode's any more (remove.py says what that is worth).

    Raises:
        OSError: ENOENT, ESTALE.
    """
    st = end.upper.stat(end.name)
    if st is None:
        raise os_error(errno.ENOENT, end.name)
    inode.recognise(st)


def _replace(state: State, source: Inode, old: _End, target: Inode | None, new: _End, *, whiteout: bool) -> None:
    _check_target(state, source, target, new.name)
    _make_independent(state, source, old, new)
    with _replaced(state, target, new) as replaced:
        _recognise(source, old)
        _move(state, source, old, new, whiteout=whiteout or lower_is_positive(state, old.directory, old.name))
    # Everybody sees the new name from here on: nothing may fail any more.
    replaced()
    _renamed(source, old, new)
    state.writable().whiteouts.drop_file_mark(new.upper, new.name)


def _exchange(state: State, one: Inode, here: _End, other: Inode, there: _End) -> None:
    _make_independent(state, one, here, there)
    _make_independent(state, other, there, here)
    _recognise(one, here)
    _recognise(other, there)
    # Without the flag in the filesystem there is no way that a crash could not spoil: EINVAL, as rename(2) says.
    here.upper.rename(here.name, there.upper, there.name, syscalls.RENAME_EXCHANGE)
    del here.directory.children[here.name]
    del there.directory.children[there.name]
    _renamed(one, here, there)
    _renamed(other, there, here)


# -- the target -------------------------------------------------------------------------------------------------------


def _check_target(state: State, source: Inode, target: Inode | None, name: bytes) -> None:
    if target is None:
        return
    if isinstance(source, Directory):
        if not isinstance(target, Directory):
            raise os_error(errno.ENOTDIR, name)
        if not is_empty(state, target):
            raise os_error(errno.ENOTEMPTY, name)
    elif isinstance(target, Directory):
        raise os_error(errno.EISDIR, name)


@contextmanager
def _replaced(state: State, target: Inode | None, new: _End) -> Iterator[Callable[[], None]]:
    """Hold what a rename in the block replaces, so that those who have it open keep it.

    Returns:
        What keeps the inodes true, to be called once it was replaced.
    """
    if isinstance(target, Directory):
        with ExitStack() as undo:
            held = -1 if target.upper is None else new.upper.hold(new.name)
            if held >= 0:
                undo.callback(os.close, held)
                target.recognise(os.fstat(held))
            _make_empty(state, target)

            def gone() -> None:
                if target.upper is not None:
                    target.upper.pin(held)
                directory_gone(state, target, new.directory, new.name)

            yield gone
            undo.pop_all()
    elif isinstance(target, File):
        st = new.upper.stat(new.name)
        if st is not None:
            target.recognise(st)
        covering = nullcontext() if st is not None else covering_lower_name(state, new.directory, new.name)
        with covering, holding(target, new.upper, new.name):
            yield lambda: name_gone(state, target, new.directory, new.name)
    else:
        yield lambda: None


def _make_empty(state: State, target: Directory) -> None:
    """Make the upper part of an empty-looking directory really empty, so that it can be renamed over."""
    if target.upper is None:
        return
    if target.lowers:
        with target.grasp() as held:
            state.writable().whiteouts.make_opaque(held, target.upper)
        target.detach()  # also if the rename fails: nothing hides their names any more
        state.restacked(target)
    for name in target.upper.names():
        st = target.upper.stat(name)
        if st is not None and not is_reserved(name) and not is_whiteout(target.upper, name, st):
            raise os_error(errno.ENOTEMPTY, name)  # put there since it was found to be empty
        target.upper.unlink(name)
        target.upper.note_wh_file(name, present=False)


# -- the source -------------------------------------------------------------------------------------------------------


def _make_independent(state: State, source: Inode, old: _End, new: _End) -> None:
    """Make the source independent of the place where it lies."""
    note_path(state, source, old.directory, old.name)
    if not isinstance(source, Directory):
        return
    assert source.upper is not None, "it is copied up"
    if source.lowers:
        redirect.write(state, source, leaves_parent=old.directory is not new.directory)
    elif new.directory.lowers and _may_meet_lowers(state, source, new):
        with source.grasp() as held:
            state.writable().whiteouts.make_opaque(held, source.upper)


def _may_meet_lowers(state: State, source: Directory, new: _End) -> bool:
    """Whether a directory without lowers would get some by going there: a redirect that leads to nothing where it lies
    could lead to something beside its new name."""
    return lower_is_positive(state, new.directory, new.name) or redirect.mark_of(source) is not None


# -- the move ---------------------------------------------------------------------------------------------------------


def _move(state: State, source: Inode, old: _End, new: _End, *, whiteout: bool) -> None:
    """The rename in the upper.

    Args:
        whiteout: the old name needs one.
    """
    side = state.writable()
    if isinstance(source, Directory) and _is_whiteout_at(new):
        if side.work.capabilities.exchange:
            # The whiteout goes to the old name, where it may be needed.
            old.upper.rename(old.name, new.upper, new.name, syscalls.RENAME_EXCHANGE)
            if not whiteout:
                _drop_useless(state, old)
            return
        with side.whiteouts.hidden(new.upper, new.name):
            new.upper.unlink(new.name)
            _move_to_free_name(state, old, new, whiteout=whiteout)
        return
    _move_to_free_name(state, old, new, whiteout=whiteout)


def _move_to_free_name(state: State, old: _End, new: _End, *, whiteout: bool) -> None:
    """Or to that of what one rename replaces."""
    side = state.writable()
    if whiteout:
        side.whiteouts.move_away(old.upper, old.name, new.upper, new.name)
    else:
        old.upper.rename(old.name, new.upper, new.name)


def _is_whiteout_at(end: _End) -> bool:
    """Whether a whiteout lies there: a file replaces it like any other file, a directory cannot."""
    st = end.upper.stat(end.name)
    return st is not None and is_whiteout(end.upper, end.name, st)


def _drop_useless(state: State, end: _End) -> None:
    """Remove a whiteout of nothing; one that resists does no harm."""
    try:
        end.upper.unlink(end.name)
    except OSError as error:
        state.log.warning("a useless whiteout %r stays: %s", end.name, error)


def _renamed(inode: Inode, old: _End, new: _End) -> None:
    """Keep the inodes true after a rename."""
    if old.directory.children.get(old.name) is inode:
        del old.directory.children[old.name]
    new.directory.children[new.name] = inode
    if isinstance(inode, Directory):
        inode.renamed(new.directory, new.name)
    elif isinstance(inode, File):
        inode.remove_name(old.directory, old.name)
        inode.add_name(new.directory, new.name)
        inode.renamed((old.upper, old.name), (new.upper, new.name))
    old.directory.stale()
    new.directory.stale()
