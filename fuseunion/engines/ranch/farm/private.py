"""Private copies: a file of a layer becomes a file of the farm, and may later turn out to be unchanged.

A user without privileges cannot keep a foreign owner, nor then its set-id bits. So what a copy has to look like to
count as unchanged is what its maker could make of it (owners.py).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from fuseunion.core.copying import copy_data
from fuseunion.core.copying.metadata import attempts, known_entries, mode_kept
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.format import xattr_names
from fuseunion.core.ids import acl
from fuseunion.core.ownership import Facts
from fuseunion.core.tree.directory import Directory
from fuseunion.engines.ranch.record import marker
from fuseunion.engines.ranch.record.owners import Owners, same_attributes

_BLOCK = 1 << 20
_REFUSED = frozenset({errno.EPERM, errno.EINVAL, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EOVERFLOW})
_ACLS = (xattr_names.POSIX_ACL_ACCESS, xattr_names.POSIX_ACL_DEFAULT)
READ_FILE, READ_DIRECTORY = 0o400, 0o500
"""What an owner needs for that."""
TEMPORARY = b".fuseunion-new-"
"""What the names of unfinished objects in a farm begin with."""

Owner = tuple[int, int]
"""A user and a group to give."""

Place = bytes | int
"""A path, which is not followed, or a descriptor, O_PATH or not."""


def proc_fd(fd: int) -> bytes:
    """A path that has to be followed to what a descriptor holds (proc(5))."""
    return b"/proc/self/fd/%d" % fd


def place_of(directory: Directory) -> Place:
    """Where the attributes of a directory of the union are read."""
    try:
        return directory.top.fd()
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return directory.proc_path()  # something is mounted there


def owner_of(st: os.stat_result) -> Owner:
    """Who owns an object."""
    return st.st_uid, st.st_gid


@dataclass(frozen=True, slots=True)
class Reading:
    """A regular file that is being read.

    Attributes:
        fd: a descriptor of it.
        attributes: those that this user can give to another file.
    """

    fd: int
    attributes: dict[bytes, bytes]


Legible = Callable[[RealDir, bytes | None], AbstractContextManager[None]]
"""Lends the user the permission to read what he closed to himself: a directory, and a regular file in it."""


@contextmanager
def reading(real: RealDir, name: bytes, lend: Legible | None = None) -> Iterator[Reading]:
    """Open a regular file; a permission that has to be lent for that is given back before this returns.

    Raises:
        OSError: EACCES for a file that is not the user's, or lies in a lower.
    """
    with (lend or legible)(real, name):
        fd = real.open(name, os.O_RDONLY)
        try:
            found = Reading(fd, _comparable(fd))
        except BaseException:
            os.close(fd)
            raise
    try:
        yield found
    finally:
        os.close(fd)


def copy_file(source: Reading, target: int, st: os.stat_result, owner: Owner) -> None:
    """Copy data, attributes, mode and times of a regular file, and give the copy to `owner`.

    Args:
        st: of the source, before the permission to read it was lent.
    Raises:
        OSError: EIO, ENOSPC, EDQUOT.
    """
    copy_data.copy(source.fd, target, st.st_size, st.st_size)
    dress(target, st, owner, source.attributes)


def dress(place: Place, st: os.stat_result, owner: Owner, attributes: dict[bytes, bytes] | None = None) -> None:
    """Give an object to `owner`, as far as the user may, and the mode, the times and perhaps attributes of another."""
    path, follow = _reach(place)
    # First, because chown(2) clears set-id bits and capabilities.
    for uid, gid in attempts(*owner):
        try:
            os.chown(path, uid, gid, follow_symlinks=follow)
            break
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
    if attributes is not None:
        _set_xattrs(place, attributes)
    if not stat.S_ISLNK(st.st_mode):
        os.chmod(path, mode_kept(Facts.of(st), os.stat(path, follow_symlinks=follow)))
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=follow)


def _reach(place: Place) -> tuple[bytes, bool]:
    """A path, and whether it has to be followed."""
    return (proc_fd(place), True) if isinstance(place, int) else (place, False)


@contextmanager
def legible(real: RealDir, name: bytes | None = None) -> Iterator[None]:
    """Lend the user the permission to read what he closed to himself in the farm or in UPPER.

    Args:
        real: a directory of his.
        name: a regular file in it.
    """
    if not real.layer.writable or os.geteuid() == 0:
        yield
        return
    with ExitStack() as stack:
        if (mode := lacking(os.fstat(real.fd()), READ_DIRECTORY)) is not None:
            stack.enter_context(lent(os.dup(real.fd()), mode, mode | READ_DIRECTORY))
        if name is not None and (mode := lacking(real.stat(name), READ_FILE)) is not None:
            stack.enter_context(lent(hold(real, name), mode, mode | READ_FILE))
        yield


def lacking(st: os.stat_result | None, rights: int) -> int | None:
    """The mode of an object, if it is the user's and denies him some of the rights."""
    if st is None or stat.S_ISLNK(st.st_mode) or st.st_mode & rights == rights or os.geteuid() != st.st_uid:
        return None
    return stat.S_IMODE(st.st_mode) if st.st_uid else None


def hold(real: RealDir, name: bytes) -> int:
    """An O_PATH descriptor of one name."""
    return os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=real.fd())


@contextmanager
def lent(fd: int, mode: int, instead: int) -> Iterator[None]:
    """Give what a descriptor, which is closed in the end, holds another mode for a while."""
    try:
        os.chmod(proc_fd(fd), instead)
        try:
            yield
        finally:
            os.chmod(proc_fd(fd), mode)
    finally:
        os.close(fd)


def same_file(
    made: RealDir,
    made_name: bytes,
    real: RealDir,
    name: bytes,
    owners: Owners | None,
    lend: Legible | None = None,
) -> bool:
    """Whether a private copy equals a regular file of a layer.

    Raises:
        OSError: one of them cannot be read.
    """
    lend = lend or legible
    with ExitStack() as opened:
        with lend(made, None), lend(real, None):
            a, b = made.stat(made_name), real.stat(name)
            if a is None or b is None or not (stat.S_ISREG(a.st_mode) and stat.S_ISREG(b.st_mode)):
                return False
            if os.path.samestat(a, b):
                return True
            if a.st_size != b.st_size or not same_attributes(a, b, owners):
                return False
            one = opened.enter_context(reading(made, made_name, lend))
            other = opened.enter_context(reading(real, name, lend))
        return _equal(one.attributes, other.attributes, owners) and _same_data(one.fd, other.fd)


def _same_data(first: int, second: int) -> bool:
    while block := os.read(first, _BLOCK):
        if block != _read_exactly(second, len(block)):
            return False
    return True


def same_xattrs(made: Place, original: Place, owners: Owners | None) -> bool:
    """Whether the attributes that any user can copy are equal."""
    return _equal(_comparable(made), _comparable(original), owners)


def _equal(made: dict[bytes, bytes], original: dict[bytes, bytes], owners: Owners | None) -> bool:
    """Where nobody can tell whose the ids of the farm are, entries of ACLs for other users and groups do not count."""
    if made == original or owners is not None:
        return made == original
    return _without_names(made) == _without_names(original)


def _without_names(attributes: dict[bytes, bytes]) -> dict[bytes, object]:
    named = (acl.Tag.USER, acl.Tag.GROUP)
    return {
        name: [entry for entry in acl.parse(value) if entry.tag not in named] if name in _ACLS else value
        for name, value in attributes.items()
    }


def _comparable(place: Place) -> dict[bytes, bytes]:
    """The attributes of an object that this user can give to another."""
    path, follow = _reach(place)
    found: dict[bytes, bytes] = {}
    try:
        names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=follow)]
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return found
    prefixes = (b"user.", b"system.posix_acl_", *((xattr_names.CAPABILITY, b"trusted.") if os.geteuid() == 0 else ()))
    for name in names:
        if not name.startswith(prefixes) or name.startswith(b"user.fuseunion.") or xattr_names.is_private(name):
            continue
        try:
            value = os.getxattr(path, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EACCES, errno.EPERM, errno.EOVERFLOW):
                raise
        else:
            found[name] = known_entries(value) if name in _ACLS else value
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
        os.chmod(proc_fd(fd), mode | 0o700)


def put_copy(source: Reading, st: os.stat_result, target: RealDir, name: bytes, owner: Owner, *, marked: bool) -> None:
    """Put a private copy of an open regular file into a farm; what has the name is replaced by one rename.

    Args:
        st: of the file, before the permission to read it was lent.
        marked: the copy tells which file it is of.
    """
    temporary = TEMPORARY + name[:200]
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, 0o600, dir_fd=target.fd())
    try:
        if marked:
            marker.mark_copy(fd, st)
        copy_file(source, fd, st, owner)
    except BaseException:
        os.unlink(temporary, dir_fd=target.fd())
        raise
    finally:
        os.close(fd)
    os.rename(temporary, name, src_dir_fd=target.fd(), dst_dir_fd=target.fd())


def match_xattrs(source: Place, target: Place) -> None:
    """Make the attributes that this user can give equal: set, change and remove.

    Raises:
        OSError: ENOSPC and the like; what the target's filesystem does not take is left out.
    """
    _set_xattrs(target, _comparable(source))


def _set_xattrs(target: Place, wanted: dict[bytes, bytes]) -> None:
    present = _comparable(target)
    path, follow = _reach(target)
    for name in present.keys() - wanted.keys():
        os.removexattr(path, name, follow_symlinks=follow)
    # The access ACL last: it may take the write permission that the attributes of a user need.
    for name in sorted(wanted, key=xattr_names.POSIX_ACL_ACCESS.__eq__):
        if present.get(name) == wanted[name]:
            continue
        try:
            os.setxattr(path, name, wanted[name], follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
