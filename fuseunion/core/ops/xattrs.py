"""Extended attributes of merged objects: what is asked for, listed, set and removed through the union.

Ids in ACLs and capabilities go through the id maps (acl.py, capability.py). Where ownership is stored, the mode is the
store's, and with it what an ACL grants to the owner.

The kernel has checked permissions and namespaces already (fs/xattr.c xattr_permission) and asks, before each write to a
file, for security.capability. Attributes known to be absent are therefore remembered per inode.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Set
from functools import partial
from typing import TypeAlias

from fuseunion.core.disk.access import LayerAccess
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.format import xattr_names
from fuseunion.core.ids import acl, capability
from fuseunion.core.ids.identity import Identity
from fuseunion.core.ops import attributes
from fuseunion.core.ops.attributes import stat_of
from fuseunion.core.ops.copy_up.directories import copy_up_directory
from fuseunion.core.ownership.stored_names import STORED
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import ASKED_OFTEN, NO_CAPABILITY, NONE_ABSENT, Inode
from fuseunion.core.tree.place import Held
from fuseunion.core.tree.state import State
from fuseunion.linux.objects.permission import as_owner_of
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.linux.os_error import os_error

_ABSENT: dict[frozenset[bytes], frozenset[bytes]] = {NO_CAPABILITY: NO_CAPABILITY, ASKED_OFTEN: ASKED_OFTEN}
"""The subsets of these that inodes lack, shared by all who lack the same."""

Where: TypeAlias = tuple[RealDir, bytes, int, int]
"""A real directory and a name there, st_dev and st_ino of what it leads to."""

_LOOKED_AT = frozenset({stat.S_IFREG, stat.S_IFLNK})

_PERMISSIONS = 0o777
_ACLS = frozenset({xattr_names.POSIX_ACL_ACCESS, xattr_names.POSIX_ACL_DEFAULT})


def _check(state: State, name: bytes) -> None:
    if not state.settings.xattrs or (name in _ACLS and not state.settings.acl):
        raise os_error(errno.EOPNOTSUPP)


def getxattr(state: State, inode: Inode, name: bytes) -> bytes:
    """getxattr(2).

    Raises:
        OSError: ENODATA, EOPNOTSUPP.
    """
    if name in inode.absent_xattrs:
        raise os_error(errno.ENODATA)
    _check(state, name)
    layer = state.layer_of(inode)
    try:
        with inode.grasp() as held:
            read = partial(_read, layer, held, name)
            value = as_owner_of(held, read) if layer.writable else read()
    except OSError as error:
        # A filesystem without ACLs has none to show; EOPNOTSUPP would fail the kernel's permission check (fs/fuse/acl.c
        # fuse_get_acl).
        none = error.errno == errno.ENODATA or (error.errno == errno.EOPNOTSUPP and name in _ACLS)
        if none and name in ASKED_OFTEN:
            note_absent(inode, {name})
        if none or error.errno == errno.EPERM:
            raise os_error(errno.ENODATA) from error
        raise
    if name == xattr_names.POSIX_ACL_ACCESS and layer.ownership is not None:
        value = acl.with_owner(value, stat_of(state, inode).st_mode >> 6 & 7)
    return _to_shown(name, value, state.settings.identity)


def note_absent(inode: Inode, names: Set[bytes]) -> frozenset[bytes]:
    """An inode was found to lack attributes that are asked for again and again. Returns what it is known to lack."""
    absent = frozenset({*inode.absent_xattrs, *names})
    inode.absent_xattrs = absent = _ABSENT.setdefault(absent, absent)
    return absent


def lists_all(state: State, inode: Inode) -> bool:
    """Whether an inode has no attribute that is asked for again and again when a list of its attributes is empty."""
    layer = state.layer_of(inode)
    return state.settings.xattrs and state.settings.acl and layer.ownership is None and layer.true_names is None


def where_to_look(state: State, inode: Inode) -> Where | None:
    """Where the attributes of a file or directory are, and nowhere else, for who looks whether there are any; None
    where there is more to it."""
    if isinstance(inode, Directory):
        known = inode.top.known_id
        where = None if known is None else (inode.top, b".", *known)
    elif isinstance(inode, File) and inode.kind in _LOOKED_AT and not isinstance(inode.place, Held):
        where = inode.place
    else:
        return None
    return where if lists_all(state, inode) else None


def _read(layer: LayerAccess, held: RealObject, name: bytes) -> bytes:
    *first, last = layer.xattr_names(name)
    if not _is_believed(layer, held, last):
        raise os_error(errno.ENODATA)
    for disk_name in first:
        if not _is_believed(layer, held, disk_name):
            continue
        try:
            return layer.getxattr(held, disk_name)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
    return layer.getxattr(held, last)


def _is_believed(layer: LayerAccess, held: RealObject, disk_name: bytes) -> bool:
    return layer.ownership is None or layer.ownership.believes_xattr(held, disk_name)


def _to_shown(name: bytes, value: bytes, identity: Identity) -> bytes:
    if not identity.trivial:
        if name in _ACLS:
            return acl.to_shown(value, identity)
        if name == xattr_names.CAPABILITY:
            return capability.to_shown(value, identity)
    return value


def _to_disk(name: bytes, value: bytes, identity: Identity) -> bytes:
    if not identity.trivial:
        if name in _ACLS:
            return acl.to_disk(value, identity)
        if name == xattr_names.CAPABILITY:
            return capability.to_disk(value, identity)
    return value


def listxattr(state: State, inode: Inode) -> list[bytes]:
    """listxattr(2)."""
    if not state.settings.xattrs:
        return []
    layer = state.layer_of(inode)
    with inode.grasp() as held:
        names = [name for name in layer.listxattr(held) if _is_believed(layer, held, name)]
    shown = map(layer.xattr_to_shown, names)
    visible = (name for name in shown if name is not None and (state.settings.acl or name not in _ACLS))
    return list(dict.fromkeys(visible))


def _prepare(state: State, inode: Inode) -> None:
    """Get an inode ready for its attributes to be changed."""
    state.writable()
    if isinstance(inode, Directory):
        copy_up_directory(state, inode)
    inode.absent_xattrs = NONE_ABSENT
    inode.stale()


def _changed(inode: Inode, name: bytes) -> None:
    if name == xattr_names.POSIX_ACL_DEFAULT and isinstance(inode, Directory):
        inode.default_acl = None


def setxattr(state: State, inode: Inode, name: bytes, value: bytes) -> None:
    """setxattr(2). An empty ACL is a removal (fs/posix_acl.c: an ACL without entries is none).

    Raises:
        OSError: EPERM for names that are not a user's; EOPNOTSUPP, ENOSPC, ERANGE of the upper's filesystem.
    """
    _check(state, name)
    upper = state.writable().layer
    if inode is state.root and name in STORED:
        # On the root it would turn the whole upper into one with stored ownership (ownership/choose.py).
        raise os_error(errno.EPERM)
    disk_name = upper.xattr_to_disk(name)
    value = _to_disk(name, value, state.settings.identity)
    _prepare(state, inode)
    with inode.grasp() as held:
        if name == xattr_names.POSIX_ACL_ACCESS and upper.ownership is not None:
            _set_stored_access_acl(state, held, inode, value)
        else:
            as_owner_of(held, partial(held.setxattr, disk_name, value))
    _changed(inode, name)


def _set_stored_access_acl(state: State, held: RealObject, inode: Inode, value: bytes) -> None:
    """An ACL sets the permission bits too (fs/posix_acl.c posix_acl_update_mode): stored ones, here."""
    parsed = acl.parse(value)
    held.setxattr(xattr_names.POSIX_ACL_ACCESS, acl.with_owner(value, acl.FULL))
    if parsed:
        kept = stat_of(state, inode).st_mode & ~_PERMISSIONS
        attributes.chmod(state, inode, kept | acl.equivalent(parsed).permissions)


def is_there(state: State, inode: Inode, name: bytes) -> bool:
    """Whether there is something to remove: nothing is copied up for an attribute that is not there.

    Removing a POSIX ACL that is not there succeeds (fs/posix_acl.c, set_posix_acl without an ACL).

    Raises:
        OSError: ENODATA for any other attribute; EOPNOTSUPP.
    """
    try:
        getxattr(state, inode, name)
        return True
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EACCES, errno.EINVAL):
            raise
        # What cannot be read can be removed, by its name: what one may not read (fs/xattr.c xattr_permission), and a
        # capability that is none (security/commoncap.c cap_inode_getsecurity: EINVAL).
        if error.errno != errno.ENODATA and name in listxattr(state, inode):
            return True
    if name not in _ACLS:
        raise os_error(errno.ENODATA)
    return False


def removexattr(state: State, inode: Inode, name: bytes) -> None:
    """removexattr(2).

    Raises:
        OSError: ENODATA, EPERM, EOPNOTSUPP.
    """
    _check(state, name)
    disk_names = state.writable().layer.xattr_names(name)
    _prepare(state, inode)
    removed = 0
    with inode.grasp() as held:
        for disk_name in disk_names:
            try:
                as_owner_of(held, partial(held.removexattr, disk_name))
                removed += 1
            except OSError as error:
                if error.errno != errno.ENODATA:
                    raise
    if not removed:
        raise os_error(errno.ENODATA)
    _changed(inode, name)
