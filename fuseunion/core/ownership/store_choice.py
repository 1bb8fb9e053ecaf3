"""Which ownership store a layer uses: found out by probing, never from a filesystem's name.

A layer says so itself, by the attribute on its root directory (fuse-overlayfs main.c main; containers/storage sets
it when it unpacks with force_mask). A layer whose root lacks it is read plainly. The upper of a mount that asks for
stored ownership is marked; from then on it is one, whatever a later mount asks for, since writing real owners beside
stored ones, or under another name, would show neither. (fuse-overlayfs before 1.11 marks with the name in `user.` that
later ones only read.)

    upper's filesystem has        facts are in                            symbolic links
    user xattrs                   user.containers.override_stat           database
    security xattrs (mode 1)      security.fuseoverlayfs.override_stat    the same
    neither                       database                                database

The database module, and with it sqlite3, is imported only where a database is used.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from fuseunion.core.ownership import facts as codec
from fuseunion.core.ownership.facts import DATABASE_FILE, Facts
from fuseunion.core.ownership.store import OwnershipStore
from fuseunion.core.ownership.stored_names import OverrideName
from fuseunion.core.ownership.xattr_store import XattrStore
from fuseunion.linux.objects.permission import as_owner_of
from fuseunion.linux.objects.real_object import RealObject

_ABSENT = frozenset({errno.ENODATA, errno.EOPNOTSUPP})


def detect(root_fd: int) -> XattrStore | None:
    """The store that a lower layer was written with, or None where its files are what they look like.

    Raises:
        OSError: EIO and the like from the layer.
    """
    found = _marked(root_fd)
    return None if found is None else XattrStore(found[0], foreign=True)


def choose(
    root_fd: int,
    wanted: OverrideName | None,
    work_fd: int | None,
    lower_fds: Iterable[int] = (),
    root: Facts | None = None,
    *,
    volatile: bool = False,
    in_image: bool = False,
) -> OwnershipStore | None:
    """The store of an upper, made ready for use; None where real owners are written.

    Args:
        root_fd: the upper's root, an O_RDONLY descriptor.
        wanted: the attribute that the mount asks for, if it asks for stored ownership.
        work_fd: the directory of the work area that outlives the mount; None does without a database.
        lower_fds: the roots of the lowers, topmost first: the first that is marked lends an unmarked upper the
            facts of the root directory.
        root: else these are its facts; None takes the real ones.
        volatile: never wait for the disk.
        in_image: the upper lies in an image, which no path leads to, as a database needs it; owners there can be real.

    Raises:
        OSError: EPERM where security.* may not be set, else as setxattr(2) and the database.
    """
    root_held = RealObject(root_fd)
    marked = as_owner_of(root_held, lambda: _marked(root_fd))
    store: OwnershipStore | None = None
    if marked is not None:
        store = _with_xattr(marked[0], work_fd, volatile=volatile, in_image=in_image)
    elif wanted is None:
        if work_fd is not None and has_database(work_fd):
            store = _database(work_fd, volatile=volatile)
    else:
        value = _root_facts(lower_fds, Facts.of(os.fstat(root_fd)) if root is None else root)
        try:
            as_owner_of(root_held, lambda: root_held.setxattr(wanted, value))
        except OSError as error:
            may = error.errno == errno.EOPNOTSUPP and not in_image
            store = _database(work_fd, volatile=volatile) if may else None
            if store is None:
                raise
            st = os.fstat(root_fd)
            if store.find(root_held, st) is None:
                store.store(root_held, st, codec.parse(value))
        else:
            store = _with_xattr(wanted, work_fd, volatile=volatile, in_image=in_image)
    return store


def has_database(work_fd: int) -> bool:
    """True where a work area holds an ownership database, so that it must be kept."""
    try:
        os.stat(DATABASE_FILE, dir_fd=work_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _marked(root_fd: int) -> tuple[OverrideName, bytes] | None:
    for name in OverrideName:
        try:
            return name, RealObject(root_fd).getxattr(name)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
    return None


def _root_facts(lower_fds: Iterable[int], otherwise: Facts) -> bytes:
    """What the root directory of an unmarked upper is to look like: as the first marked lower's, or as said.

    (fuse-overlayfs makes it 0:0 with mode 0555, which the user who mounts may not write to.)
    """
    for fd in lower_fds:
        lower = _marked(fd)
        if lower is not None:
            return lower[1]
    return codec.unparse(otherwise)


def _with_xattr(name: OverrideName, work_fd: int | None, *, volatile: bool, in_image: bool) -> XattrStore:
    if in_image and name is not OverrideName.PRIVILEGED:
        from fuseunion.core.ownership.link_owners import LinkOwners  # most mounts have none

        return XattrStore(name, LinkOwners())
    return XattrStore(name, None if name is OverrideName.PRIVILEGED else _database(work_fd, volatile=volatile))


def _database(work_fd: int | None, *, volatile: bool) -> OwnershipStore | None:
    if work_fd is None:
        return None
    from fuseunion.core.ownership.database_store import DatabaseStore

    return DatabaseStore(work_fd, volatile=volatile)
