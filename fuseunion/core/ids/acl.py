"""POSIX ACLs as the xattrs `system.posix_acl_access` and `system.posix_acl_default` carry them.

The kernel keeps an ACL in its own memory and speaks this binary form at every border: to programs, to FUSE, to
us when we ask the backing filesystem. The form is a 4-byte version and one 8-byte entry a rule, all little
endian (include/uapi/linux/posix_acl_xattr.h):

    | version = 2 | tag, permissions, id | tag, permissions, id | ...

The id counts only in USER and GROUP entries, where it is a number in the namespace of the process that reads: those are
what an id map must translate. In all others it is NO_ID.

The rest of the module is fs/posix_acl.c, for the places where the backing filesystem cannot do it for us: new
objects are made in the work directory, which has no default ACL, and a mode that lives in an ownership store
has no ACL code behind it. An ACL that says no more than a mode is never stored; the mode is (`equivalent`).
"""

from __future__ import annotations

import enum
import errno
import stat
import struct
from collections.abc import Callable
from typing import NamedTuple

from fuseunion.core.ids.identity import Identity
from fuseunion.linux.os_error import os_error

_VERSION = 2
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
NO_ID = 0xFFFFFFFF
_PERMISSIONS = 0o777


class Tag(enum.IntEnum):
    """Whom an entry is about, in the order in which the kernel wants them (fs/posix_acl.c posix_acl_valid)."""

    USER_OBJ = 0x01
    USER = 0x02
    GROUP_OBJ = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


class Entry(NamedTuple):
    """One rule."""

    tag: Tag
    perm: int
    who: int = NO_ID


Acl = tuple[Entry, ...]


def parse(value: bytes) -> Acl:
    """The entries of an xattr value, in its own order and unchecked (fs/posix_acl.c posix_acl_from_xattr).

    Raises:
        OSError: EINVAL for a wrong size or tag, EOPNOTSUPP for another version.
    """
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise os_error(errno.EINVAL)
    if _HEADER.unpack_from(value) != (_VERSION,):
        raise os_error(errno.EOPNOTSUPP)
    try:
        return tuple(Entry(Tag(tag), perm, who) for tag, perm, who in _ENTRY.iter_unpack(value[_HEADER.size :]))
    except ValueError:
        raise os_error(errno.EINVAL) from None


def unparse(acl: Acl) -> bytes:
    """The xattr value of the entries."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


# -- id maps ---------------------------------------------------------------------------------------------------


def to_shown(value: bytes, identity: Identity) -> bytes:
    """An ACL from disk with the ids that users of the mount see; unmapped ones are the overflow id.

    The squash options do not touch it: two qualifiers squashed into one would change what the ACL grants.

    Raises:
        OSError: as `parse`.
    """
    return _translate(value, identity.uids.to_shown, identity.gids.to_shown, identity)


def to_disk(value: bytes, identity: Identity) -> bytes:
    """An ACL from a user of the mount with the ids to store.

    Raises:
        OSError: as `parse`; EINVAL for an id that the map does not cover, also when owners are squashed, because
            an ACL cannot be stored in part.
    """
    return _translate(value, identity.uids.to_disk, identity.gids.to_disk, identity)


def _translate(value: bytes, uid: Callable[[int], int], gid: Callable[[int], int], identity: Identity) -> bytes:
    if identity.uids.trivial and identity.gids.trivial:
        return value
    entries = []
    for entry in parse(value):
        if entry.tag is Tag.USER:
            entry = entry._replace(who=uid(entry.who))
        elif entry.tag is Tag.GROUP:
            entry = entry._replace(who=gid(entry.who))
        entries.append(entry)
    return unparse(tuple(entries))


# -- modes -----------------------------------------------------------------------------------------------------


class Equivalent(NamedTuple):
    """What a mode can say of an ACL.

    Attributes:
        permissions: the nine permission bits; the group's are the mask's where there is a mask.
        exact: the ACL says nothing more, so it need not be stored.
    """

    permissions: int
    exact: bool


def equivalent(acl: Acl) -> Equivalent:
    """The mode of an object that has this access ACL (fs/posix_acl.c posix_acl_equiv_mode).

    The empty ACL cannot be asked: it means "no ACL", and the mode stays.

    Raises:
        OSError: EINVAL for an empty ACL.
    """
    if not acl:
        raise os_error(errno.EINVAL)
    permissions = 0
    exact = True
    mask = None
    for entry in acl:
        perm = entry.perm & 7
        if entry.tag is Tag.USER_OBJ:
            permissions |= perm << 6
        elif entry.tag is Tag.GROUP_OBJ:
            permissions |= perm << 3
        elif entry.tag is Tag.OTHER:
            permissions |= perm
        else:
            exact = False
            if entry.tag is Tag.MASK:
                mask = perm
    if mask is not None:
        permissions = (permissions & 0o707) | mask << 3
    return Equivalent(permissions, exact)


def after_chmod(value: bytes, mode: int) -> bytes:
    """The access ACL of an object after chmod(2) (fs/posix_acl.c __posix_acl_chmod_masq).

    Raises:
        OSError: as `parse`.
    """
    acl = parse(value)
    group = Tag.MASK if any(entry.tag is Tag.MASK for entry in acl) else Tag.GROUP_OBJ
    shifts = {Tag.USER_OBJ: 6, group: 3, Tag.OTHER: 0}
    return unparse(
        tuple(entry._replace(perm=mode >> shifts[entry.tag] & 7) if entry.tag in shifts else entry for entry in acl)
    )


FULL = 7


def with_owner(value: bytes, perm: int) -> bytes:
    """The same ACL, but granting the owner `perm`.

    Where ownership is stored, the real object's owner is the daemon's user, who must always get at it; what the shown
    owner may do is in the stored mode.

    Raises:
        OSError: as `parse`.
    """
    return unparse(tuple(entry._replace(perm=perm) if entry.tag is Tag.USER_OBJ else entry for entry in parse(value)))


# -- inheritance -----------------------------------------------------------------------------------------------


class Inherited(NamedTuple):
    """What a new object starts with.

    Attributes:
        mode: its mode, file type and all.
        access: the value of its access ACL, None where the mode says it all.
        default: the value of its default ACL, None where it has none.
    """

    mode: int
    access: bytes | None
    default: bytes | None


def inherit(parent_default: bytes | None, mode: int, umask: int) -> Inherited:
    """Mode and ACLs of an object created in a directory (fs/posix_acl.c posix_acl_create).

    The umask counts only where the directory has no default ACL, which takes its place.

    Args:
        parent_default: the directory's default ACL, None where it has none.
        mode: as the caller of open, mkdir or mknod gave it, with the file type.
        umask: the caller's; 0 where the kernel has applied it.

    Raises:
        OSError: as `parse`; EIO for a default ACL without the obligatory entries.
    """
    if stat.S_ISLNK(mode):
        return Inherited(mode, None, None)
    acl = parse(parent_default) if parent_default is not None else ()
    if not acl:
        return Inherited(mode & ~umask, None, None)
    access, granted, exact = _restrict(acl, mode)
    return Inherited(
        mode & ~_PERMISSIONS | granted,
        None if exact else unparse(access),
        parent_default if stat.S_ISDIR(mode) else None,
    )


def _restrict(acl: Acl, mode: int) -> tuple[Acl, int, bool]:
    """A default ACL and a mode cut down to what both grant (fs/posix_acl.c posix_acl_create_masq)."""
    granted = equivalent(acl).permissions & mode
    tags = {entry.tag for entry in acl}
    if Tag.GROUP_OBJ not in tags and Tag.MASK not in tags:
        raise os_error(errno.EIO)
    return parse(after_chmod(unparse(acl), granted)), granted, equivalent(acl).exact
