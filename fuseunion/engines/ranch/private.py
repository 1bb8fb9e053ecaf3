"""Private copies: a file of a layer becomes a file of the farm, and may later turn out to be unchanged.

A user without privileges cannot keep a foreign owner, nor then its set-id bits. So what a copy has to look like to
count as unchanged is what this user could make of it.
"""

from __future__ import annotations

import errno
import os
import stat

from fuseunion.core import copy_data, xattrs
from fuseunion.core.identity import overflow_id
from fuseunion.core.realdir import RealDir

_BLOCK = 1 << 20
_SET_ID = stat.S_ISUID | stat.S_ISGID
_REFUSED = frozenset({errno.EPERM, errno.EINVAL, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EOVERFLOW})
TEMPORARY = b".fuseunion-new-"
"""What the names of unfinished objects in a farm begin with."""


def copy_file(source: int, target: int) -> None:
    """Copy data, attributes and times of a regular file.

    Raises:
        OSError: EIO, ENOSPC, EDQUOT.
    """
    st = os.fstat(source)
    copy_data.copy(source, target, st.st_size, st.st_size)
    match_xattrs(source, target)
    dress(b"/proc/self/fd/%d" % target, st, follow=True)


def dress(path: bytes, st: os.stat_result, *, follow: bool = False) -> None:
    """Give an object the owner, the mode and the times of another, as far as the user may.

    Args:
        path: of the object; a link at its end is followed only with `follow`.
    """
    owned = _chown(path, st, follow)
    if not stat.S_ISLNK(st.st_mode):
        mode = stat.S_IMODE(st.st_mode)
        os.chmod(path, mode if owned or stat.S_ISDIR(st.st_mode) else mode & ~_SET_ID)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=follow)


def _chown(path: bytes, st: os.stat_result, follow: bool) -> bool:
    for uid in (st.st_uid, -1):
        try:
            os.chown(path, uid, st.st_gid, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
        else:
            return uid != -1
    return False


def same_file(one: RealDir, name: bytes, other: RealDir, other_name: bytes) -> bool:
    """Whether a private copy equals a regular file of a layer.

    Raises:
        OSError: one of them cannot be read.
    """
    a, b = one.stat(name), other.stat(other_name)
    if a is None or b is None or not (stat.S_ISREG(a.st_mode) and stat.S_ISREG(b.st_mode)):
        return False
    if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino):
        return True
    if a.st_size != b.st_size or not same_attributes(a, b):
        return False
    if not same_xattrs(one.proc_path(name), other.proc_path(other_name)):
        return False
    first = one.open(name, os.O_RDONLY)
    try:
        second = other.open(other_name, os.O_RDONLY)
        try:
            while block := os.read(first, _BLOCK):
                if block != _read_exactly(second, len(block)):
                    return False
            return True
        finally:
            os.close(second)
    finally:
        os.close(first)


def same_attributes(made: os.stat_result, original: os.stat_result) -> bool:
    """Whether mode, owner and time of a copy are what the user could keep of the original's."""
    if stat.S_IFMT(made.st_mode) != stat.S_IFMT(original.st_mode) or not _same_time(made, original):
        return False
    mode, wanted = stat.S_IMODE(made.st_mode), stat.S_IMODE(original.st_mode)
    kept = made.st_uid == original.st_uid and made.st_gid == original.st_gid
    if not kept and not stat.S_ISDIR(made.st_mode):
        wanted &= ~_SET_ID
        mode &= ~_SET_ID
    if mode != wanted:
        return False
    # Only who may give files away can have changed their owner; an original's owner without a number here is unknown.
    return kept or os.geteuid() != 0 or _unmapped(original)


def _unmapped(st: os.stat_result) -> bool:
    return st.st_uid == overflow_id("uid") or st.st_gid == overflow_id("gid")


def _same_time(made: os.stat_result, original: os.stat_result) -> bool:
    """Equal times, or equal as far as the farm's filesystem keeps them (microseconds, seconds)."""
    a, b = made.st_mtime_ns, original.st_mtime_ns
    return a == b or any(a % unit == 0 and b // unit == a // unit for unit in (1_000, 1_000_000_000))


def same_xattrs(made: bytes, original: bytes) -> bool:
    """Whether the attributes that any user can copy are equal. Paths are not followed."""
    return _comparable(made) == _comparable(original)


def _comparable(where: bytes | int) -> dict[bytes, bytes]:
    """The attributes of an object that this user can give to another; a path is not followed."""
    found: dict[bytes, bytes] = {}
    try:
        names = xattrs.listxattr(where)
    except PermissionError:
        return found
    prefixes = (b"user.", b"system.posix_acl_", *((xattrs.CAPABILITY, b"trusted.") if os.geteuid() == 0 else ()))
    for name in names:
        if not name.startswith(prefixes) or name.startswith(b"user.fuseunion.") or xattrs.is_private(name):
            continue
        try:
            found[name] = (
                os.getxattr(where, name) if isinstance(where, int) else os.getxattr(where, name, follow_symlinks=False)
            )
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EACCES, errno.EPERM, errno.EOVERFLOW):
                raise
    return found


def _read_exactly(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            break
        data += more
    return data


def open_up(directory: RealDir) -> None:
    """Give the owner of a directory all rights on it; a directory of mode 000 may not even be searched."""
    fd = directory.fd()
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if mode & 0o700 != 0o700:
        os.chmod(b"/proc/self/fd/%d" % fd, mode | 0o700)


def put_copy(source: int, target: RealDir, name: bytes) -> None:
    """Put a private copy of an open regular file into a farm; what has the name is replaced by one rename."""
    temporary = TEMPORARY + name[:200]
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, 0o600, dir_fd=target.fd())
    try:
        copy_file(source, fd)
    except BaseException:
        os.unlink(temporary, dir_fd=target.fd())
        raise
    finally:
        os.close(fd)
    os.rename(temporary, name, src_dir_fd=target.fd(), dst_dir_fd=target.fd())


def match_xattrs(source: bytes | int, target: bytes | int) -> None:
    """Make the attributes that this user can give equal: set, change and remove. Paths are not followed.

    Raises:
        OSError: ENOSPC and the like; what the target's filesystem does not take is left out.
    """
    wanted, present = _comparable(source), _comparable(target)
    follow: dict[str, bool] = {} if isinstance(target, int) else {"follow_symlinks": False}
    for name in present.keys() - wanted.keys():
        os.removexattr(target, name, **follow)
    for name, value in wanted.items():
        if present.get(name) == value:
            continue
        try:
            os.setxattr(target, name, value, **follow)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise


def owner_differs(made: os.stat_result, original: os.stat_result) -> bool:
    """Whether somebody changed the owner of a copy, as far as this user could."""
    same = made.st_uid == original.st_uid and made.st_gid == original.st_gid
    return not same and os.geteuid() == 0 and not _unmapped(original)


def with_owner(st: os.stat_result, owner: os.stat_result) -> os.stat_result:
    """A stat result with the owner of another."""
    fields = list(st)
    fields[4], fields[5] = owner.st_uid, owner.st_gid
    extra = {name: getattr(st, name) for name in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")}
    return os.stat_result(fields, extra)
