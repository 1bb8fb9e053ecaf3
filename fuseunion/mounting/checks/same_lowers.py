"""Whether an upper is mounted over the lowers that it was mounted over last.

What is in an upper was made on top of certain lowers: a copy of one file, a whiteout of another. Over others it may
mean anything, and nothing looks wrong at first. Overlayfs with its option `index` refuses such a mount (ESTALE,
fs/overlayfs/namei.c ovl_verify_origin_fh); without it nobody notices. Here it is one warning, since to add a layer on
top, or to move on to the next release of a lower, is done on purpose too.

The mark `overlay.fuseunion.lowers` on the root of the upper, trusted. or user. like the other marks:

    +---------+------------------------------------------------------------+
    | version | digest over the root of each lower, topmost first:         |
    | 1 byte  | its inode number and its time of birth; 8 bytes            |
    +---------+------------------------------------------------------------+

Only filesystems whose inode numbers outlive a mount are looked at, the others count as one more lower: a FUSE
filesystem or an overlay over several filesystems may number a directory anew each time, and a tmpfs is made anew
(Apptainer's session directory). So does an image, which the kernel shows today and a program tomorrow. What was changed
within a lower is not noticed.

Root in the first user namespace sees both marks and keeps both true; others see only that of user.
"""

import errno
import logging
import os
from collections.abc import Collection, Iterable

from fuseunion.core.format import xattr_names
from fuseunion.core.format.digest import blake2b
from fuseunion.linux import f_types, syscalls
from fuseunion.linux.objects.real_object import RealObject

_log = logging.getLogger("fuseunion.lowers")

_VERSION = b"\x01"

_NAMES = tuple(os.fsdecode(prefix + xattr_names.LOWERS) for prefix in xattr_names.PREFIXES)

_LASTING = frozenset({
    f_types.EXT, f_types.XFS, f_types.BTRFS, f_types.F2FS, f_types.BCACHEFS, f_types.ZFS, f_types.SQUASHFS,
    f_types.EROFS, f_types.NFS, f_types.CEPH, f_types.LUSTRE, f_types.GPFS,
})  # fmt: skip


def identity(lower_fds: Iterable[int], images: Collection[int] = ()) -> bytes:
    """What the mark holds for these lowers, topmost first.

    Args:
        images: st_dev of those that are images.
    """
    digest = blake2b(digest_size=8)
    for fd in lower_fds:
        digest.update(b"%s;" % (b"?" if os.fstat(fd).st_dev in images else _of_root(fd)))
    return _VERSION + digest.digest()


def _of_root(fd: int) -> bytes:
    lasting = lasting_identity(fd)
    return b"?" if lasting is None else b"%d %d" % lasting


def lasting_identity(fd: int) -> tuple[int, int] | None:
    """What a directory is recognised by after a remount, when st_dev may be another: inode number, time of birth.

    Args:
        fd: of the directory.

    Returns:
        None where inode numbers do not outlive a mount.
    """
    if syscalls.filesystem_type(fd) not in _LASTING:
        return None
    return os.fstat(fd).st_ino, RealObject(fd).birth_time_ns() or 0


def differ(upper_fd: int, now: bytes) -> bool:
    """Whether the upper was last mounted over other lowers; False where it is not known."""
    marks = _marks(upper_fd)
    return bool(marks) and now not in marks.values()


def remember(upper_fd: int, now: bytes) -> None:
    """Mark the upper, if it can be marked."""
    marks = _marks(upper_fd)
    for name in marks or _NAMES:
        if marks.get(name) == now:
            continue
        try:
            os.setxattr(upper_fd, name, now)
        except OSError as error:
            # No attributes here, not ours to set, or no space for one: then the next mount has nothing to compare with.
            _log.debug("%s cannot be set: %s", name, error)
        else:
            if not marks:
                return


def _marks(upper_fd: int) -> dict[str, bytes]:
    found = {}
    for name in _NAMES:
        try:
            value = os.getxattr(upper_fd, name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM):
                _log.debug("%s cannot be read: %s", name, error)
            continue
        if value.startswith(_VERSION):
            found[name] = value
    return found
