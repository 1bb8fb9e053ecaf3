"""Files without data of their own (`metacopy=on`): owner, mode, times and attributes here, the data in a layer below.

The mark `overlay.metacopy` says so (fs/overlayfs/namei.c ovl_check_metacopy_xattr). `overlay.redirect` beside it, under
the same prefix, says where the data is: a name, or a path from the roots of the lowers. The value may hold a digest for
fs-verity, which is not looked at, as in overlayfs with `verity=off`.

Who can write the mark decides by which mode others may read the data below it. So it is believed only of those who
could have read the data themselves:

    trusted.    the machine's root wrote it, unless the filesystem may have come from elsewhere (mounted `nosuid`)
    user.       who mounted wrote it: the file is the daemon's own and nobody else may write to it; and the daemon is
                not the machine's root, who writes trusted. marks

`metacopy=on` says that nobody else writes in the upper, and that filesystems mounted `nosuid` are trusted. What is not
believed answers EPERM, as in overlayfs without the option.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial

from fuseunion.core.disk.access import LayerAccess
from fuseunion.core.format import xattr_names
from fuseunion.core.ownership.belief import is_closed, is_needed
from fuseunion.linux.objects.permission import as_owner_of
from fuseunion.linux.objects.real_object import RealObject

_TRUSTED, _USER = xattr_names.PREFIXES


def redirect_of(held: RealObject, layer: LayerAccess, *, asked: bool) -> bytes | None:
    """Where a file that carries the mark says that its data is; None for its own place.

    Args:
        held: by a descriptor.
        asked: for metacopy, by the option.

    Raises:
        MalformedError: EPERM for a mark that is not believed.
    """
    prefix = as_owner_of(held, lambda: _believed(held, layer, asked=asked))
    if prefix is None:
        raise xattr_names.malformed(errno.EPERM)
    try:
        return as_owner_of(held, lambda: layer.getxattr(held, prefix + xattr_names.REDIRECT))
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
    return None


def _believed(held: RealObject, layer: LayerAccess, *, asked: bool) -> bytes | None:
    """The prefix of the mark that is believed."""
    names, st = layer.listxattr(held), held.stat()
    if not stat.S_ISREG(st.st_mode):
        return None
    if _TRUSTED + xattr_names.METACOPY in names:
        return _TRUSTED if asked or not os.fstatvfs(held.fd).f_flag & os.ST_NOSUID else None
    if _USER + xattr_names.METACOPY not in names:
        return None
    if is_needed():
        return None
    own = st.st_uid == os.geteuid() and is_closed(st)
    return _USER if own or (asked and layer.writable) else None


def mark(held: RealObject, prefix: bytes) -> None:
    """Say of a file in work that its data is elsewhere.

    Raises:
        OSError: of setxattr(2).
    """
    held.setxattr(prefix + xattr_names.METACOPY, b"")


def is_marked(held: RealObject) -> bool:
    """Whether a file has a mark, believed or not.

    Raises:
        OSError: of listxattr(2).
    """
    return bool(_marks(held))


def _marks(held: RealObject) -> list[bytes]:
    """The marks that this process sees, the one that counts most last."""
    names = held.listxattr()
    return [name for name in (_USER + xattr_names.METACOPY, _TRUSTED + xattr_names.METACOPY) if name in names]


def unmark(held: RealObject) -> None:
    """Say of a file that its data is its own. A redirect that is left means nothing (ovl_check_metacopy_xattr).

    Raises:
        OSError: of removexattr(2); then the mark that counts most is still there.
    """
    for name in _marks(held):
        as_owner_of(held, partial(held.removexattr, name))
