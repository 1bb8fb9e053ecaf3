"""Attribute names in a tree with stored ownership.

A daemon without privileges can set no `security.*`, and a nested overlay's marks must not be taken for those of the
layer. In mode 2 (user.containers.override_stat) both are kept under a prefix, as fuse-overlayfs does since 1.14
(main.c, encoded_xattr_name):

    shown  security.capability          on disk  user.containers.override_security.capability

The attribute of the store itself is never shown: a program that copied it to another file, or tar that archived it,
would carry along an owner that the file system has already shown as the owner.
"""

from __future__ import annotations

import enum


class OverrideName(enum.StrEnum):
    """The attributes, in the order in which fuse-overlayfs looks for them (main.c main)."""

    PRIVILEGED = "security.fuseoverlayfs.override_stat"
    CONTAINERS = "user.containers.override_stat"
    LEGACY = "user.fuseoverlayfs.override_stat"


PREFIX = b"user.containers.override_"
STORED = frozenset(name.encode() for name in OverrideName)
"""The attributes of the stores: hidden from users, never copied up."""

_ESCAPED = (b"security.", b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs.")
_NAME_MAX = 255


def to_disk(name: bytes) -> bytes | None:
    """The name under which a user's attribute is kept in mode 2; None where that would be too long.

    Setting a too long one is EPERM, reading it ENODATA (fuse-overlayfs(1)).
    """
    if not name.startswith(_ESCAPED):
        return name
    return PREFIX + name if len(PREFIX) + len(name) <= _NAME_MAX else None


def to_shown(name: bytes) -> bytes:
    """The name that a user sees for one on disk in mode 2."""
    rest = name.removeprefix(PREFIX)
    return rest if rest.startswith(_ESCAPED) else name
