"""The attributes that a user can carry from one object to another: copied, made equal, compared.

Those of the union itself, and those that the system gives to each object by itself, are none of them. What the target's
filesystem does not take is left out: a ranch is for users who may not do everything.
"""

from __future__ import annotations

import errno
import os

from fuseunion.core.copying.metadata import known_entries
from fuseunion.core.format import xattr_names
from fuseunion.core.ids import acl
from fuseunion.engines.ranch.record.owners import Owners
from fuseunion.linux.objects.real_object import RealObject

REFUSED = frozenset({errno.EPERM, errno.EINVAL, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EOVERFLOW})
"""What the system says of an owner or an attribute that this user, or this filesystem, cannot give an object."""

_ACLS = (xattr_names.POSIX_ACL_ACCESS, xattr_names.POSIX_ACL_DEFAULT)


def xattrs_of(what: RealObject) -> dict[bytes, bytes]:
    """The attributes of an object that this user can give to another.

    Raises:
        OSError: EIO and the like; an attribute that may not be read is left out.
    """
    found: dict[bytes, bytes] = {}
    try:
        names = what.listxattr()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise
        return found
    prefixes = (b"user.", b"system.posix_acl_", *((xattr_names.CAPABILITY, b"trusted.") if os.geteuid() == 0 else ()))
    for name in names:
        if not name.startswith(prefixes) or name.startswith(b"user.fuseunion.") or xattr_names.is_private(name):
            continue
        try:
            value = what.getxattr(name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EACCES, errno.EPERM, errno.EOVERFLOW):
                raise
        else:
            found[name] = known_entries(value) if name in _ACLS else value
    return found


def give_xattrs(target: RealObject, wanted: dict[bytes, bytes]) -> None:
    """Make an object have these attributes: set, change and remove.

    Raises:
        OSError: ENOSPC and the like; what the target's filesystem does not take is left out.
    """
    present = xattrs_of(target)
    for name in present.keys() - wanted.keys():
        target.removexattr(name)
    # The access ACL last: it may take the write permission that the attributes of a user need.
    for name in sorted(wanted, key=xattr_names.POSIX_ACL_ACCESS.__eq__):
        if present.get(name) == wanted[name]:
            continue
        try:
            target.setxattr(name, wanted[name])
        except OSError as error:
            if error.errno not in REFUSED:
                raise


def match_xattrs(source: RealObject, target: RealObject) -> None:
    """Make the attributes of one object equal to those of another. Raises as `give_xattrs`."""
    give_xattrs(target, xattrs_of(source))


def same_xattrs(made: RealObject, original: RealObject, owners: Owners | None) -> bool:
    """Whether the attributes of an object are those that it was made with.

    Args:
        original: what it was made after.
        owners: who made it, where that can be told.
    """
    return equal_xattrs(xattrs_of(made), xattrs_of(original), owners)


def equal_xattrs(made: dict[bytes, bytes], original: dict[bytes, bytes], owners: Owners | None) -> bool:
    """As `same_xattrs`, of attributes that were read before.

    Where nobody can tell whose the ids of the farm are, entries of ACLs for other users and groups do not count.
    """
    if made == original or owners is not None:
        return made == original
    return _without_names(made) == _without_names(original)


def _without_names(attributes: dict[bytes, bytes]) -> dict[bytes, object]:
    named = (acl.Tag.USER, acl.Tag.GROUP)
    return {
        name: [entry for entry in acl.parse(value) if entry.tag not in named] if name in _ACLS else value
        for name, value in attributes.items()
    }
