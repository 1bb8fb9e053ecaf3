"""Owner, mode, times and xattrs of a copy-up."""

from __future__ import annotations

import errno
import os
import stat

from fuseunion.core import xattrs

# Not kept in silence: attributes that the upper's filesystem has no place for (fs/overlayfs/copy_up.c ovl_copy_xattr).
_NO_PLACE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
# A capability for the root of another user namespace cannot be read (security/commoncap.c cap_inode_getsecurity).
_UNREADABLE = frozenset({errno.EOVERFLOW, errno.ENODATA, errno.EOPNOTSUPP})


def copy_xattrs(source: bytes | int, target: bytes | int) -> None:
    """Copy every xattr but the union's own marks. Paths are not followed.

    Raises:
        OSError: when a POSIX ACL or a security.* attribute, or space, is refused; what belongs to security modules
            that the upper's filesystem does not have is left out.
    """
    for name in xattrs.listxattr(source):
        if xattrs.is_private(name):
            continue
        try:
            value = _get(source, name)
        except OSError as error:
            if error.errno in _UNREADABLE:
                continue
            raise
        try:
            if isinstance(target, int):
                os.setxattr(target, name, value)
            else:
                os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as error:
            must = name in (xattrs.POSIX_ACL_ACCESS, xattrs.POSIX_ACL_DEFAULT, xattrs.CAPABILITY)
            if error.errno in _NO_PLACE and not must:
                continue
            if error.errno == errno.EPERM and name.startswith(b"security.") and not must:
                continue  # a label that the security module gives by itself (security.selinux in a user namespace)
            raise


def _get(source: bytes | int, name: bytes) -> bytes:
    if isinstance(source, int):
        return os.getxattr(source, name)
    return os.getxattr(source, name, follow_symlinks=False)


def copy_owner_mode_times(path: bytes, st: os.stat_result) -> None:
    """Give an object that is still in work the owner, mode and times of `st`."""
    os.chown(path, st.st_uid, st.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(st.st_mode):
        os.chmod(path, stat.S_IMODE(st.st_mode))
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)


def mark_merged(path: bytes, prefix: bytes) -> None:
    """Tell the kernel that a directory was copied up, so that it looks for whiteouts when it lists it.

    An empty `origin` says "copied up, from I do not know where" (fs/overlayfs/namei.c ovl_check_origin_xattr).
    """
    try:
        os.setxattr(path, prefix + xattrs.ORIGIN, b"", follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EPERM, errno.EOPNOTSUPP):
            raise
