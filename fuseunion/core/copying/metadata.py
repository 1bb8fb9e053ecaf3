"""Owner, mode, times and xattrs of a copy-up.

An ordinary user can give nothing away, and the root of a user namespace can give nothing to ids that have no number in
it. Usually that is an error. Where the owner is optional (Settings.owner_optional), the object gets what can be given:
user and group, else the group alone, else the user alone, else it stays the daemon's own. It then loses what would
speak for an owner that it does not have: the set-user-ID and set-group-ID bits, file capabilities, and the entries of
ACLs for ids without a number.
"""

from __future__ import annotations

import errno
import os
import stat

from fuseunion.core.disk.access import LayerAccess
from fuseunion.core.format import xattr_names
from fuseunion.core.ids import acl
from fuseunion.core.ids.identity import KEEP, Identity, overflow_id
from fuseunion.core.ownership.belief import OTHERS_WRITE
from fuseunion.core.ownership.facts import Facts, backing_mode
from fuseunion.linux import namespaces
from fuseunion.linux.objects.real_object import RealObject

# Not kept in silence: attributes that the upper's filesystem has no place for (fs/overlayfs/copy_up.c ovl_copy_xattr).
_NO_PLACE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
# A capability for the root of another user namespace cannot be read (security/commoncap.c cap_inode_getsecurity).
_UNREADABLE = frozenset({errno.EOVERFLOW, errno.ENODATA, errno.EOPNOTSUPP})


# What chown(2) says of an owner that is not the daemon's to give, or has no spelling in its user namespace.
_NOT_OURS_TO_GIVE = frozenset({errno.EPERM, errno.EINVAL, errno.EOVERFLOW})

_ACLS = (xattr_names.POSIX_ACL_ACCESS, xattr_names.POSIX_ACL_DEFAULT)


def copy_xattrs(
    source: RealObject,
    target: RealObject,
    lower: LayerAccess,
    upper: LayerAccess,
    *,
    without_capability: bool,
    owner_optional: bool = False,
) -> None:
    """Copy every xattr that a user sees, but not the union's own marks.

    Between layers that keep ownership in different ways the same attribute has different names.

    Args:
        source, target: held by descriptors.
        without_capability: leave security.capability out.
        owner_optional: leave out what speaks for an owner that cannot be kept.

    Raises:
        OSError: when a POSIX ACL or a security.* attribute, or space, is refused; what belongs to security modules
            that the upper's filesystem does not have is left out.
    """
    chosen: dict[bytes, bytes] = {}
    for name in lower.listxattr(source):
        shown = lower.xattr_to_shown(name)
        if lower.ownership is not None and not lower.ownership.believes_xattr(source, name):
            continue
        if shown is not None and (shown not in chosen or name != shown):
            chosen[shown] = name  # the store's own name wins over the plain one (Layer.xattr_names)
    if without_capability:
        chosen.pop(xattr_names.CAPABILITY, None)
    # The access ACL last: it may take the write permission that the attributes of a user need.
    for shown in sorted(chosen, key=xattr_names.POSIX_ACL_ACCESS.__eq__):
        name = chosen[shown]
        try:
            disk = name if lower.ownership is upper.ownership else upper.xattr_to_disk(shown)
        except PermissionError:
            continue  # a stored owner in a layer that has none, or a name that is too long with its prefix
        try:
            value = lower.getxattr(source, name)
        except OSError as error:
            if error.errno in _UNREADABLE:
                continue
            raise
        if shown == xattr_names.POSIX_ACL_ACCESS and upper.ownership is not None:
            value = acl.with_owner(value, acl.FULL)
        if owner_optional and shown in _ACLS:
            value = known_entries(value)
        try:
            target.setxattr(disk, value)
        except OSError as error:
            must = shown in _ACLS or (shown == xattr_names.CAPABILITY and not owner_optional)
            if error.errno in _NO_PLACE and not must:
                continue
            if error.errno == errno.EPERM and disk.startswith(b"security.") and not must:
                continue  # a label that the security module gives by itself (security.selinux in a user namespace)
            raise


def is_unknown(number: int, kind: str) -> bool:
    """True for the id that stands for one without a number in this user namespace (user_namespaces(7)).

    Args:
        kind: "uid" or "gid".
    """
    return number == overflow_id(kind) and not namespaces.maps_every_id(kind)


def known_entries(value: bytes) -> bytes:
    """An ACL without the entries for ids that have no number in this user namespace."""
    named = (acl.Tag.USER, acl.Tag.GROUP)
    return acl.unparse(tuple(e for e in acl.parse(value) if e.tag not in named or e.who != acl.NO_ID))


def attempts(uid: int, gid: int) -> tuple[tuple[int, int], ...]:
    """What to ask chown(2) for, one after the other, to give as much of an owner as can be given."""
    uid, gid = KEEP if is_unknown(uid, "uid") else uid, KEEP if is_unknown(gid, "gid") else gid
    return (uid, gid), (KEEP, gid), (uid, KEEP)


def chown(held: RealObject, uid: int, gid: int, identity: Identity, *, optional: bool = False) -> None:
    """chown(2) of a real object; an owner that cannot be given is let go where owners are squashed anyway.

    Args:
        optional: give as much of the owner as can be given.
    """
    for pair in attempts(uid, gid) if optional else ((uid, gid),):
        try:
            held.chown(*pair)
            return
        except OSError as error:
            if not (optional or identity.lenient) or error.errno not in _NOT_OURS_TO_GIVE:
                raise


def give_owner(
    held: RealObject,
    real: os.stat_result,
    facts: Facts,
    upper: LayerAccess,
    identity: Identity,
    *,
    optional: bool = False,
) -> Facts:
    """Give an object that is still in work its owner; with stored ownership, all of the facts.

    Args:
        real: its lstat.
        facts: as they are to be shown; KEEP as uid or gid leaves the daemon's own.
        optional: give as much of the owner as can be given.

    Returns:
        The facts with the mode that the object may have with the owner that it got.
    """
    if upper.ownership is None:
        if (real.st_uid, real.st_gid) == (facts.uid, facts.gid):
            return facts
        chown(held, facts.uid, facts.gid, identity, optional=optional)
        return facts._replace(mode=mode_kept(facts, held.stat())) if optional else facts
    uid = real.st_uid if facts.uid == KEEP else facts.uid
    gid = real.st_gid if facts.gid == KEEP else facts.gid
    upper.ownership.store(held, real, facts._replace(uid=uid, gid=gid))
    return facts


def mode_kept(facts: Facts, owner: os.stat_result) -> int:
    """The mode of `facts` without the set-id bits that would speak for another than the owner that was kept."""
    lost = (stat.S_ISUID if owner.st_uid != facts.uid else 0) | (stat.S_ISGID if owner.st_gid != facts.gid else 0)
    return facts.mode & ~lost


def give_mode(held: RealObject, facts: Facts, upper: LayerAccess) -> None:
    """Give an object that is still in work its mode, after owner and ACL: both change it."""
    if facts.kind != stat.S_IFLNK:
        held.chmod(real_mode(held, facts.kind, facts.mode, upper))


def real_mode(held: RealObject, kind: int, mode: int, upper: LayerAccess) -> int:
    """The permissions of the real object for one that shows `mode`.

    Where not everything stored is believed, nobody else may write to a real object: they could write its facts. One
    with an ACL stays as it is asked for, because the ACL that is shown is the real one, its mask these permissions.
    """
    if upper.ownership is None:
        return mode
    real = stat.S_IMODE(backing_mode(kind | mode))
    return real & ~OTHERS_WRITE if upper.ownership.guarded and not _has_acl(held) else real


def _has_acl(held: RealObject) -> bool:
    try:
        held.getxattr(xattr_names.POSIX_ACL_ACCESS)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return False
    return True


def real_kind(kind: int, upper: LayerAccess) -> int:
    """The type of the real object that stands for one of type `kind` in the upper."""
    return kind if upper.ownership is None else stat.S_IFMT(backing_mode(kind))


def mark_merged(held: RealObject, prefix: bytes) -> None:
    """Tell the kernel that a directory was copied up, so that it looks for whiteouts when it lists it.

    An empty `origin` says "copied up, from I do not know where" (fs/overlayfs/namei.c ovl_check_origin_xattr).
    """
    try:
        held.setxattr(prefix + xattr_names.ORIGIN, b"")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EPERM, errno.EOPNOTSUPP):
            raise
