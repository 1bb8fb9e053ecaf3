"""Going back to a snapshot.

A copy is made, and takes the place of UPPER by one exchange of two names. The work directory, which belongs to it,
cannot change in the same instant. So a file that no mount accepts is put there first, and goes last; the command, given
again, goes on where it was cut off:

    the mark in WORK                         no mount from here on
    the copy is whole: `#restore/ready`      nothing has changed before that
    UPPER and the copy exchanged             the inode number in `#restore/ready` is now UPPER's
    what WORK kept goes: `#restore/cleared`
    what is to be kept comes there
    `#restore/ready` goes, the mark, `#restore`
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

from fuseunion.core.disk import trees
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.ownership.facts import DATABASE_FILE
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import owned, syscalls
from fuseunion.linux.os_error import os_error
from fuseunion.offline.upkeep.holding import HeldUpper, hold
from fuseunion.offline.upkeep.points.owners_copy import stores_of
from fuseunion.offline.upkeep.points.place import KEPT, LINKS, RESTORE, UPPER, WORK, Place, layer_of
from fuseunion.offline.upkeep.points.tree_copy import TreeCopy

MARK = "restore-is-not-finished"
"""A foreign file to every mount (mounting/prepare.py judge_work)."""

_READY, _CLEARED = b"ready", b"cleared"


# -- restoring -------------------------------------------------------------------------------------------------------


def restore(there: Place, name: str, work: str | None) -> None:
    """Let an upper that nobody uses be what it was; a restore that was cut off is finished first.

    Raises:
        UserError: BUSY, LAYERS; UNAVAILABLE where the filesystem cannot exchange two names.
        OSError: of the filesystem.
    """
    source = there.existing(name)
    _finish(there, work)
    with ExitStack() as stack:
        held = hold(stack, there.upper, work)
        work_fd = _work_directory(stack, held)
        new = there.root.child(RESTORE)
        trees.remove(there.root, RESTORE)
        new.renew()
        there.clean()
        try:
            _build(there, source, new)
        except BaseException:
            trees.remove(there.root, RESTORE)  # a part of a copy can be what fills a disk
            _remove_empty(held)
            raise
        os.close(owned.new_file(MARK, work_fd))
        _write(new, _READY, b"%d" % new.child(UPPER).own_stat().st_ino)
        _go_on(there, held, new, work_fd)
    _remove_empty(held)


def _finish(there: Place, work: str | None) -> None:
    """Finish a restore that was cut off. UPPER may be another directory then, so nothing of this is held any longer."""
    with ExitStack() as stack:
        held = hold(stack, there.upper, work)
        new = there.root.child(RESTORE)
        if held.work_fd is not None and _is_under_way(new, held.work_fd):
            _go_on(there, held, new, held.work_fd)


def _is_under_way(new: RealDir, work_fd: int) -> bool:
    try:
        os.stat(MARK, dir_fd=work_fd, follow_symlinks=False)
        return new.stat(_READY) is not None
    except OSError:
        return False  # of another time, or not ours


def _work_directory(stack: ExitStack, held: HeldUpper) -> int:
    if held.work_fd is not None:
        return held.work_fd
    os.mkdir(held.work_path, 0o700)
    fd = owned.open_directory(os.path.realpath(held.work_path))
    stack.callback(os.close, fd)
    return fd


def _build(there: Place, source: RealDir, new: RealDir) -> None:
    """Copy a snapshot to `#restore`, on disk."""
    os.mkdir(RESTORE, 0o700, dir_fd=there.root.fd())
    for each in (UPPER, WORK):
        os.mkdir(each, 0o700, dir_fd=new.fd())
    kept, made = source.child(WORK), new.child(WORK)
    with ExitStack() as stack:
        stores = None
        if kept.stat(DATABASE_FILE) is not None:
            area = stack.enter_context(layer_of(kept.fd(), there.upper))
            stores = stack.enter_context(stores_of(new, area, made))
        copy = TreeCopy(stores=stores)
        copy.copy(source.child(UPPER), new.child(UPPER))
        if kept.stat(LINKS) is not None:
            os.mkdir(LINKS, 0o700, dir_fd=made.fd())
            copy.copy(kept.child(LINKS), made.child(LINKS))
    syscalls.syncfs(there.layer.root_fd)


def _go_on(there: Place, held: HeldUpper, new: RealDir, work_fd: int) -> None:
    """Everything after the copy is whole. Each part is done once, however often this is called."""
    wanted = int(owned.read_file(_READY, new.fd(), 32))
    parent, name = os.path.split(there.upper)
    parent_fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        if found.st_ino != wanted:
            if not os.path.samestat(found, os.fstat(held.root_fd)):
                raise os_error(errno.ESTALE, os.fsencode(there.upper))
            _exchange(parent_fd, os.fsencode(name), new, there.upper)
    finally:
        os.close(parent_fd)
    if new.stat(_CLEARED) is None:
        with layer_of(work_fd, there.upper) as area:
            for each in KEPT:
                trees.remove(area.root, each)
        _write(new, _CLEARED, b"")
    made = new.child(WORK)
    for each in KEPT:
        if made.stat(each) is not None:
            os.rename(each, each, src_dir_fd=made.fd(), dst_dir_fd=work_fd)
    syscalls.syncfs(work_fd)
    new.unlink(_READY)
    os.unlink(MARK, dir_fd=work_fd)
    trees.remove(there.root, RESTORE)


def _exchange(parent_fd: int, name: bytes, new: RealDir, upper: str) -> None:
    try:
        syscalls.renameat2(parent_fd, name, new.fd(), UPPER, syscalls.RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EBUSY):
            raise
        raise UserError(
            f"'{upper}' cannot be exchanged for its copy ({error.strerror}): it is a mount point, or its filesystem "
            "has no RENAME_EXCHANGE",
            ExitCode.UNAVAILABLE,
        ) from None


def _remove_empty(held: HeldUpper) -> None:
    """Remove a default work directory that holds nothing."""
    if not held.default_work:
        return
    for path in (os.path.join(held.work_path, "work"), held.work_path):
        try:
            os.rmdir(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                raise


def _write(real: RealDir, name: bytes, data: bytes) -> None:
    """Make a small file at once, by a rename, and put it on disk."""
    fd = owned.new_file(name + b".new", real.fd())
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    real.rename(name + b".new", real, name)
