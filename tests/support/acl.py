"""POSIX ACLs in the form of the `system.posix_acl_*` xattrs (include/uapi/linux/posix_acl_xattr.h).

A 4-byte version (2), then one 8-byte entry per rule: tag, permissions, id, all little endian.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"
_NO_ID = 0xFFFFFFFF


class Tag(enum.IntEnum):
    """Who a rule is about."""

    USER_OBJ = 0x01
    USER = 0x02
    GROUP_OBJ = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


class Rule(NamedTuple):
    """One ACL entry."""

    tag: Tag
    perm: int
    who: int = _NO_ID


def encode(*rules: Rule) -> bytes:
    """The value of the xattr for rules in canonical order."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", rule.tag, rule.perm, rule.who) for rule in rules)


def decode(value: bytes) -> list[Rule]:
    """The rules in the value of an xattr."""
    assert struct.unpack_from("<I", value) == (2,)
    return [Rule(Tag(tag), perm, who) for tag, perm, who in struct.iter_unpack("<HHI", value[4:])]


def with_named_user(uid: int, perm: int = 7, *, owner: int = 7, group: int = 5, other: int = 0) -> bytes:
    """A usual extended ACL: owner, one named user, group, mask, other."""
    return encode(
        Rule(Tag.USER_OBJ, owner),
        Rule(Tag.USER, perm, uid),
        Rule(Tag.GROUP_OBJ, group),
        Rule(Tag.MASK, 7),
        Rule(Tag.OTHER, other),
    )
