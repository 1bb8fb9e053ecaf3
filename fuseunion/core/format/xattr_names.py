"""Which extended attributes belong to the union, and how a user's attributes of the same name are kept.

Three groups of names (reference: fs/overlayfs/xattrs.c, Documentation/filesystems/overlayfs.rst "Nesting overlayfs
mounts", fuse-overlayfs main.c):

* *ours*: `trusted.overlay.NAME` and `user.overlay.NAME` are the marks of the on-disk format. They are never shown
  and never copied up.
* *escaped*: a user who sets `trusted.overlay.NAME` through the mount (a nested overlay does) gets
  `trusted.overlay.overlay.NAME` on disk, and sees the same name again. The same for `user.overlay.`.
* *foreign marks*: `user.fuseoverlayfs.NAME`, written by fuse-overlayfs. Read where they mean something, never shown.
"""

from __future__ import annotations

import errno
import os

from fuseunion.linux.os_error import os_error

PREFIXES = (b"trusted.overlay.", b"user.overlay.")
_FOREIGN = b"user.fuseoverlayfs."
_ESCAPE = b"overlay."

MARK_PREFIXES = (*PREFIXES, _FOREIGN)
"""What the names of marks begin with, the prefix that counts most first."""

POSIX_ACL_ACCESS = b"system.posix_acl_access"
POSIX_ACL_DEFAULT = b"system.posix_acl_default"
CAPABILITY = b"security.capability"

# Suffixes of the marks (fs/overlayfs/overlayfs.h enum ovl_xattr), and our own ones.
OPAQUE = b"opaque"
WHITEOUT = b"whiteout"
REDIRECT = b"redirect"
METACOPY = b"metacopy"
ORIGIN = b"origin"
UNION_ORIGIN = b"fuseunion.origin"
LOWERS = b"fuseunion.lowers"
MOUNTED = b"fuseunion.mounted"


class MalformedError(OSError):
    """A mark on an object says what no mark can say, or what we cannot do: that one object cannot be used."""


def malformed(code: int = errno.EINVAL) -> MalformedError:
    """The error for an object whose marks cannot be understood."""
    return MalformedError(code, os.strerror(code))


def to_disk(name: bytes) -> bytes:
    """The name under which a user's attribute is kept.

    Raises:
        OSError: EPERM for the marks of fuse-overlayfs, which a user may not forge.
    """
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return prefix + _ESCAPE + name[len(prefix) :]
    if name.startswith(_FOREIGN):
        raise os_error(errno.EPERM)
    return name


def to_shown(name: bytes) -> bytes | None:
    """The name a user sees for one on disk, or None when it is hidden."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            return prefix + rest[len(_ESCAPE) :] if rest.startswith(_ESCAPE) else None
    return None if name.startswith(_FOREIGN) else name


def is_private(name: bytes) -> bool:
    """True for what copy-up leaves behind: every mark, but not a user's escaped attributes."""
    return to_shown(name) is None
