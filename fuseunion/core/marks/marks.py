"""Reading every on-disk mark that hides something, mixed within one stack of layers.

whiteout   0/0 character device (kernel), empty file with xattr `whiteout` (kernel 6.7 "xwhiteout"),
           file `.wh.NAME` (AUFS, OCI, fuse-overlayfs)
opaque     xattr `opaque` = "y" as trusted.overlay., user.overlay. or user.fuseoverlayfs.,
           file `.wh..wh..opq` (AUFS, OCI, fuse-overlayfs)
"""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Container
from os import stat_result

from fuseunion.core.disk.access import LayerAccess
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.format import xattr_names
from fuseunion.linux.objects.permission import as_owner_of
from fuseunion.linux.objects.real_object import RealObject

log = logging.getLogger("fuseunion.marks")

LONGEST = 4096
"""The most bytes that a mark may have: a path (PATH_MAX) or less. The longest of ours is an origin with its path."""

_MEANT = (
    xattr_names.OPAQUE,
    xattr_names.WHITEOUT,
    xattr_names.REDIRECT,
    xattr_names.METACOPY,
    xattr_names.UNION_ORIGIN,
)
_KNOWN = {prefix + suffix: suffix for prefix in xattr_names.MARK_PREFIXES for suffix in _MEANT}
"""The attributes that mean something here, the prefix that counts most first. No other is read, however many lie on an
object: what a layer holds does not decide how much memory a lookup takes."""

_RANK = {name: rank for rank, name in enumerate(_KNOWN)}


def is_device(st: stat_result) -> bool:
    """True for a 0/0 character device."""
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def is_whiteout(real: RealDir, name: bytes, st: stat_result) -> bool:
    """True when the file `name`, whose lstat is `st`, is a whiteout in device or xattr form."""
    return is_device(st) or (_may_be_whiteout(st) and is_marked_whiteout(st, marks_of(real, name, st)))


def is_marked_whiteout(st: stat_result, marks: Container[bytes]) -> bool:
    """True when an object with these marks, by suffix, is a whiteout in xattr form. What has data is none, whatever its
    marks say (fs/overlayfs/util.c ovl_path_check_xwhiteout_xattr)."""
    return _may_be_whiteout(st) and xattr_names.WHITEOUT in marks


def _may_be_whiteout(st: stat_result) -> bool:
    return stat.S_ISREG(st.st_mode) and st.st_size == 0


def is_opaque(directory: RealDir, marks: dict[bytes, bytes]) -> bool:
    """True when a directory, which has these marks, hides the directories of the layers below."""
    return marks.get(xattr_names.OPAQUE) == b"y" or directory.has_opaque_file()


def marks_of(real: RealDir, name: bytes, st: stat_result) -> dict[bytes, bytes]:
    """The union's marks on one object by suffix (`opaque`, `redirect`, ...), with the prefix that counts.

    An object of the upper that its owner closed tells its marks all the same: without them the lower would show again.
    One of a lower that the daemon may not read counts as having none, and so does what is mounted inside a layer.

    Args:
        st: the object's lstat.

    Raises:
        OSError: of the layer; EINVAL (MalformedError) for what is longer than any mark.
    """
    if real.is_covered(name) or real.is_mount_point(name, st):
        return {}
    try:
        return _read(real.layer, real.object(name))
    except PermissionError:
        if not real.layer.writable:
            return {}
    with real.held(name) as held:
        return as_owner_of(held, lambda: _read(real.layer, held))


def _read(layer: LayerAccess, where: RealObject) -> dict[bytes, bytes]:
    """As `marks_of`; trusted.overlay. wins over user.overlay., that one over user.fuseoverlayfs., as in fuse-overlayfs.

    Raises:
        PermissionError: EACCES where there is a mark that may not be read: user.* needs read permission on the object
            (fs/xattr.c xattr_permission).
        MalformedError: EINVAL for a mark that is longer than any mark.
    """
    found: dict[bytes, bytes] = {}
    names = layer.listxattr(where)
    if not names:
        return found
    for name in sorted(_KNOWN.keys() & names, key=_RANK.__getitem__):
        suffix = _KNOWN[name]
        if suffix in found:
            continue
        try:
            value = layer.getxattr(where, name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EPERM):
                raise
            continue
        if len(value) > LONGEST:
            log.error("a mark of %d bytes, %s, is none; refused", len(value), name.decode())
            raise xattr_names.malformed()
        found[suffix] = value
    return found
