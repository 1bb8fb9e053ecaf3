"""rename(2), of directories of every kind too.

Overlayfs answers EXDEV for a directory that a lower takes part in. Here its tree is copied up first, in place, where
each step is an ordinary copy-up (`copy_tree`, driven by the caller because it may take long); then the directory is
marked opaque, which changes nothing that is seen, and renamed like any other. A crash leaves a copied-up tree.

Whether the old name needs a whiteout depends on the lowers of the old parent alone; whether a moved directory has to be
opaque, on those of the new one. Publishing is one rename wherever renameat2 has the flags (see whiteout.py).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TypeVar

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.work import opened, times_kept
from fuseunion.core.marks import whiteout
from fuseunion.core.ops.copy_up import copy_up_directory, link_name
from fuseunion.core.ops.create import check_name
from fuseunion.core.ops.origin_paths import note_path, note_paths_below
from fuseunion.core.ops.remove import covering_lower_name, directory_gone, holding, name_gone
from fuseunion.core.tree.inode import Directory, File, Inode
from fuseunion.core.tree.listing import candidates, is_empty
from fuseunion.core.tree.lookup import lookup, lower_is_positive
from fuseunion.core.tree.state import State
from fuseunion.linux import syscalls
from fuseunion.linux.os_error import os_error

_What = TypeVar("_What")
# Directory, name, and what is there.
_Named = tuple[Directory, bytes, _What]

_FLAGS = syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE | syscalls.RENAME_WHITEOUT


def check_flags(flags: int) -> None:
    """Refuse flags that renameat2(2) does not know.

    Raises:
        OSError: EINVAL.
    """
    both = syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE
    if flags & ~_FLAGS or flags & both == both:
        raise os_error(errno.EINVAL)


def copy_tree(state: State, directory: Directory) -> Generator[File, None, None]:
    """Copy up every directory of a tree and yield every file that is still to be copied up.

    What was copied stays copied, whatever the user does meanwhile: nothing in the upper ever becomes lower again.

    Raises:
        OSError: as a copy-up.
    """
    with ExitStack() as held:
        held.enter_context(state.table.held(directory))
        waiting = [directory]
        while waiting:
            current = waiting.pop()
            if current.removed:
                continue  # by somebody else, while files were copied
            upper = copy_up_directory(state, current)
            files: list[tuple[bytes, File]] = []
            with opened(upper), ExitStack() as listed:
                for name in candidates(current):
                    child = lookup(state, current, name)
                    if child is None:
                        continue
                    (held if isinstance(child, Directory) else listed).enter_context(state.table.held(child))
                    if isinstance(child, Directory) and child.lowers:
                        waiting.append(child)
                    elif isinstance(child, File) and (child.group is not None or not child.in_upper):
                        files.append((name, child))
                kept = listed.pop_all()
            with kept:
                yield from _copy_files(state, current, upper, files)


def _copy_files(
    state: State, directory: Directory, upper: RealDir, files: list[tuple[bytes, File]]
) -> Generator[File, None, None]:
    """Yield the files of one directory that are to be copied up; see that each has its own name in the upper."""
    for name, file in files:
        if not file.in_upper:
            yield file
        # While it was copied, the name may have gone, or come to mean another file.
        if file.group is not None and directory.children.get(name) is file:
            with opened(upper):
                link_name(state, file, directory, name)


def rename(state: State, old_dir: Directory, old_name: bytes, new_dir: Directory, new_name: bytes, flags: int) -> None:
    """Rename, replace or exchange.

    Precondition: the source (and with RENAME_EXCHANGE the target) was copied up, a directory with `copy_tree`.

    Raises:
        OSError: ENOENT, EEXIST, ENOTEMPTY, EISDIR, ENOTDIR, EINVAL, EROFS, ENAMETOOLONG, ENOSPC, EACCES.
    """
    check_name(new_name)
    source = lookup(state, old_dir, old_name)
    if source is None:
        raise os_error(errno.ENOENT, old_name)
    target = lookup(state, new_dir, new_name)
    if flags & syscalls.RENAME_NOREPLACE and target is not None:
        raise os_error(errno.EEXIST, new_name)
    if source is target:
        return  # two names of one file (rename(2))
    with state.table.held(source, target):
        _rename(state, (old_dir, old_name, source), (new_dir, new_name, target), flags)


def _rename(state: State, old: _Named[Inode], new: _Named[Inode | None], flags: int) -> None:
    old_dir, old_name, source = old
    new_dir, new_name, target = new
    old_upper = copy_up_directory(state, old_dir)
    new_upper = copy_up_directory(state, new_dir)
    if isinstance(source, File) and old_upper.stat(old_name) is None:
        link_name(state, source, old_dir, old_name)
    if flags & syscalls.RENAME_EXCHANGE:
        if target is None:
            raise os_error(errno.ENOENT, new_name)
        _exchange(state, old, (new_dir, new_name, target))
        return
    _check_target(state, source, target, new_name)
    _prepare_source(state, source, old_dir, old_name, new_dir, new_name)
    with _replaced(state, target, new_dir, new_upper, new_name) as held:
        leave = bool(flags & syscalls.RENAME_WHITEOUT) or lower_is_positive(state, old_dir, old_name)
        _move(state, source, old_upper, old_name, new_upper, new_name, leave_whiteout=leave)
    # Everybody sees the new name from here on: nothing may fail any more.
    if isinstance(target, Directory):
        if target.upper is not None:
            target.upper.pin(held)
        directory_gone(state, target, new_dir, new_name)
    elif isinstance(target, File):
        name_gone(state, target, new_dir, new_name)
    _moved(source, old_dir, old_name, new_dir, new_name)
    state.writable().whiteouts.drop_file_mark(new_upper, new_name)


@contextmanager
def _replaced(state: State, target: Inode | None, directory: Directory, upper: RealDir, name: bytes) -> Iterator[int]:
    """Hold what a rename in the block replaces, so that those who have it open keep it.

    Returns:
        A descriptor of a directory of the upper that is replaced, which the caller owns once the block is done; or -1.
    """
    if isinstance(target, Directory):
        _empty_target(state, target)
        held = -1 if target.upper is None else upper.hold(name)
        try:
            yield held
        except BaseException:
            if held >= 0:
                os.close(held)
            raise
    elif isinstance(target, File):
        in_upper = upper.stat(name) is not None
        with nullcontext() if in_upper else covering_lower_name(state, directory, name), holding(target, upper, name):
            yield -1
    else:
        yield -1


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


def _prepare_source(
    state: State, source: Inode, old_dir: Directory, old_name: bytes, new_dir: Directory, new_name: bytes
) -> None:
    """Make the source independent of the place where it lies."""
    assert old_dir.upper is not None
    note_path(state, old_dir, old_name)
    if not isinstance(source, Directory):
        return
    assert source.upper is not None
    whiteouts = state.writable().whiteouts
    if source.lowers:
        note_paths_below(state, source)
        with source.grasp() as fd:
            whiteouts.make_opaque(fd, source.upper)
        _detach(source)
        _drop_whiteouts(source.upper)
    elif lower_is_positive(state, new_dir, new_name):
        with source.grasp() as fd:
            whiteouts.make_opaque(fd, source.upper)


def _detach(directory: Directory) -> None:
    """The lowers take no part any more in a directory and all that is known below it."""
    waiting = [directory]
    while waiting:
        current = waiting.pop()
        current.lowers = ()
        current.stale()
        waiting += [child for child in current.children.values() if isinstance(child, Directory)]


def _drop_whiteouts(directory: RealDir) -> None:
    """Remove whiteouts that hide nothing any more: the kernel would list them as device nodes."""
    waiting = [directory]
    while waiting:
        current = waiting.pop()
        with opened(current):
            useless: list[bytes] = []
            for name in current.names():
                st = current.stat(name)
                if st is None:
                    continue
                if stat.S_ISDIR(st.st_mode):
                    waiting.append(current.child(name))
                elif whiteout.is_whiteout(current, name, st):
                    useless.append(name)
            if useless:
                with times_kept(current):
                    for name in useless:
                        os.unlink(name, dir_fd=current.fd())


def _empty_target(state: State, target: Directory) -> None:
    """Make the upper part of an empty-looking directory really empty, so that it can be renamed over."""
    if target.upper is None:
        return
    if target.lowers:
        with target.grasp() as fd:
            state.writable().whiteouts.make_opaque(fd, target.upper)
    for name in target.upper.names():
        os.unlink(name, dir_fd=target.upper.fd())
        target.upper.note_mark(name, False)


def _move(
    state: State,
    source: Inode,
    old_upper: RealDir,
    old_name: bytes,
    new_upper: RealDir,
    new_name: bytes,
    *,
    leave_whiteout: bool,
) -> None:
    side = state.writable()
    in_the_way = new_upper.stat(new_name)
    over_whiteout = in_the_way is not None and whiteout.is_whiteout(new_upper, new_name, in_the_way)
    if isinstance(source, Directory) and over_whiteout:
        if side.work.capabilities.exchange:
            # The whiteout goes to the old name, where it may be needed.
            syscalls.renameat2(old_upper.fd(), old_name, new_upper.fd(), new_name, syscalls.RENAME_EXCHANGE)
            if not leave_whiteout:
                _drop_useless(state, old_upper, old_name)
            return
        os.unlink(new_name, dir_fd=new_upper.fd())
    if leave_whiteout:
        side.whiteouts.move_away(old_upper, old_name, new_upper, new_name)
    else:
        os.rename(old_name, new_name, src_dir_fd=old_upper.fd(), dst_dir_fd=new_upper.fd())


def _drop_useless(state: State, upper: RealDir, name: bytes) -> None:
    """Remove a whiteout of nothing; one that resists does no harm."""
    try:
        os.unlink(name, dir_fd=upper.fd())
    except OSError as error:
        state.log.warning("a useless whiteout %r stays: %s", name, error)


def _exchange(state: State, one: _Named[Inode], other: _Named[Inode]) -> None:
    (one_dir, one_name, one_inode), (other_dir, other_name, other_inode) = one, other
    assert one_dir.upper is not None and other_dir.upper is not None
    _prepare_source(state, one_inode, one_dir, one_name, other_dir, other_name)
    _prepare_source(state, other_inode, other_dir, other_name, one_dir, one_name)
    # Without the flag in the filesystem there is no way that a crash could not spoil: EINVAL, as rename(2) says.
    syscalls.renameat2(one_dir.upper.fd(), one_name, other_dir.upper.fd(), other_name, syscalls.RENAME_EXCHANGE)
    del one_dir.children[one_name]
    del other_dir.children[other_name]
    _moved(one_inode, one_dir, one_name, other_dir, other_name)
    _moved(other_inode, other_dir, other_name, one_dir, one_name)


def _moved(inode: Inode, old_dir: Directory, old_name: bytes, new_dir: Directory, new_name: bytes) -> None:
    """Keep the inodes true after a rename."""
    if old_dir.children.get(old_name) is inode:
        del old_dir.children[old_name]
    new_dir.children[new_name] = inode
    assert old_dir.upper is not None and new_dir.upper is not None
    if isinstance(inode, Directory):
        inode.parent = new_dir
        inode.name = new_name
        assert inode.upper is not None
        inode.upper.parent = new_dir.upper
        inode.upper.name = new_name
    elif isinstance(inode, File):
        inode.remove_place(old_dir, old_name)
        inode.add_place(new_dir, new_name)
        if inode.upper == (old_dir.upper, old_name):
            inode.upper = (new_dir.upper, new_name)
    inode.stale()
    old_dir.stale()
    new_dir.stale()
