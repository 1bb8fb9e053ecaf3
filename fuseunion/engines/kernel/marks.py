"""What layers hold that the kernel would not understand: marks under another prefix, whiteouts of another format.

The kernel reads the marks of trusted.overlay. as the initial root, those of user.overlay. in a user namespace
(`userxattr`, which excludes redirects: Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import os
import stat

from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import AUFS_PREFIX, RealDir
from fuseunion.core.format import xattr_names
from fuseunion.mounting.prepared import Opened

_MEANING = frozenset((xattr_names.OPAQUE, xattr_names.WHITEOUT, xattr_names.REDIRECT, xattr_names.METACOPY))
"""Marks that change what is shown."""


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
    pending = [(root, b"")]
    while pending:
        directory, path = pending.pop()
        mark = _mark_on(b"/proc/self/fd/%d" % directory.fd(), prefix)
        if mark is not None:
            return path, mark
        for name in directory.names():
            way = path + b"/" + name if path else name
            if name.startswith(AUFS_PREFIX):
                return way, "the whiteout of another format"
            st = directory.stat(name)
            if st is not None and stat.S_ISDIR(st.st_mode):
                pending.append((directory.child(name), way))
            elif st is not None and stat.S_ISREG(st.st_mode) and st.st_size == 0:
                mark = _mark_on(directory.proc_path(name), prefix, whiteout_only=True)
                if mark is not None:
                    return way, mark
    return None


def _mark_on(path: bytes, prefix: bytes, *, whiteout_only: bool = False) -> str | None:
    try:
        names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=not whiteout_only)]
    except OSError:
        return None
    for name in names:
        for candidate in (b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs."):
            suffix = name[len(candidate) :]
            if not name.startswith(candidate) or suffix not in _MEANING:
                continue
            if candidate != prefix or (suffix == xattr_names.REDIRECT and prefix == b"user.overlay."):
                return f"the attribute {name.decode()}"
    return None
