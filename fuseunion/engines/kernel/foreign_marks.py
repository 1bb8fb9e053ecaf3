"""What layers hold that the kernel would not understand: marks under another prefix, whiteouts of another format.

The kernel reads the marks of trusted.overlay. as the initial root, those of user.overlay. in a user namespace
(`userxattr`, which excludes redirects: Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import os
import stat

from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.trees import walk
from fuseunion.core.disk.wh_files import is_reserved
from fuseunion.core.format import xattr_names
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.mounting.prepared import Opened

_MEANING = frozenset((xattr_names.OPAQUE, xattr_names.WHITEOUT, xattr_names.REDIRECT, xattr_names.METACOPY))
"""Marks that change what is shown."""

_ROOTS_OWN = frozenset((xattr_names.REDIRECT, xattr_names.METACOPY))
"""Those that the kernel takes as trusted.overlay. alone."""


def foreign_mark(opened: Opened, prefix: bytes) -> tuple[str, str] | None:
    """Look through a whole layer for something that the kernel would show otherwise than the other engines.

    Args:
        opened: the layer.
        prefix: of the attributes that the kernel reads.
    Returns:
        The path of the first one, and what it carries; None where there is none.
    Raises:
        OSError: the layer cannot be read.
    """
    layer = Layer(os.dup(opened.fd), writable=False, label=opened.label)
    try:
        found = _foreign_mark(layer.root, prefix)
    finally:
        layer.close()
    if found is None:
        return None
    path, mark = found
    return os.path.join(opened.label, os.fsdecode(path)), mark


def _foreign_mark(root: RealDir, prefix: bytes) -> tuple[bytes, str] | None:
    mark = _mark_on(root.itself(), prefix)
    if mark is not None:
        return b"", mark
    for entry in walk(root):
        if is_reserved(entry.name):
            return entry.path, "the whiteout of another format"
        if entry.is_directory or (stat.S_ISREG(entry.st.st_mode) and _may_be_marked(entry.st)):
            mark = _mark_on(entry.directory.object(entry.name), prefix)
            if mark is not None:
                return entry.path, mark
    return None


def _may_be_marked(st: os.stat_result) -> bool:
    """Whether a regular file can be a whiteout, which is empty, or one without data, which is a hole (metacopy)."""
    return st.st_size == 0 or st.st_blocks * 512 < st.st_size


def _mark_on(what: RealObject, prefix: bytes) -> str | None:
    try:
        names = what.listxattr()
    except OSError:
        return None
    for name in names:
        for candidate in xattr_names.MARK_PREFIXES:
            suffix = name[len(candidate) :]
            if not name.startswith(candidate) or suffix not in _MEANING:
                continue
            if candidate != prefix or (suffix in _ROOTS_OWN and prefix == b"user.overlay."):
                return f"the attribute {name.decode()}"
    return None
