"""Private copies: a file of a layer becomes a file of the farm, and may later turn out to be unchanged.

A user without privileges cannot keep a foreign owner, nor then its set-id bits. So what a copy has to look like to
count as unchanged (same.py) is what its maker could make of it (owners.py).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from fuseunion.core.copying import copy_data
from fuseunion.core.copying.metadata import attempts, mode_kept
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.ownership.facts import Facts
from fuseunion.engines.ranch.farm.portable import REFUSED, give_xattrs, xattrs_of
from fuseunion.engines.ranch.record import marker
from fuseunion.engines.ranch.record.lending import Legible, legible
from fuseunion.linux.objects.real_object import RealObject

_TEMPORARY = b".fuseunion-new-"

Owner = tuple[int, int]
"""A user and a group to give."""


def temporary_name(name: bytes) -> bytes:
    """What an object is called in the farm until it is finished; a killed command may leave one behind."""
    return _TEMPORARY + name[:200]


def is_temporary(name: bytes) -> bool:
    """Whether a name in a farm is that of an unfinished object."""
    return name.startswith(_TEMPORARY)


def owner_of(st: os.stat_result) -> Owner:
    """Who owns an object."""
    return st.st_uid, st.st_gid


class Reading(NamedTuple):
    """A regular file that is being read.

    Attributes:
        fd: a descriptor of it.
        attributes: those that this user can give to another file.
    """

    fd: int
    attributes: dict[bytes, bytes]


@contextmanager
def reading(real: RealDir, name: bytes, lend: Legible = legible) -> Iterator[Reading]:
    """Open a regular file; a permission that has to be lent for that is given back before the block begins.

    Args:
        lend: what lends it.

    Raises:
        OSError: EACCES for a file that is not the user's, or lies in a lower.
    """
    with lend(real, name):
        fd = real.wait_open_regular(name, os.O_RDONLY)
        try:
            found = Reading(fd, xattrs_of(RealObject(fd)))
        except BaseException:
            os.close(fd)
            raise
    try:
        yield found
    finally:
        os.close(fd)


def put_copy(source: Reading, st: os.stat_result, target: RealDir, name: bytes, owner: Owner, *, marked: bool) -> None:
    """Put a private copy of an open regular file into a farm; what has the name is replaced by one rename.

    Args:
        st: of the file, before the permission to read it was lent.
        marked: the copy tells which file it is of.

    Raises:
        OSError: EIO, ENOSPC, EDQUOT; nothing has changed then.
    """
    temporary = temporary_name(name)
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, 0o600, dir_fd=target.fd())
    try:
        if marked:
            marker.mark_copy(fd, st)
        copy_file(source, fd, st, owner)
    except BaseException:
        target.unlink(temporary)
        raise
    finally:
        os.close(fd)
    target.rename(temporary, target, name)


def copy_file(source: Reading, target: int, st: os.stat_result, owner: Owner) -> None:
    """Copy data, attributes, mode and times of a regular file, and give the copy to `owner`.

    Args:
        st: of the source, before the permission to read it was lent.

    Raises:
        OSError: EIO, ENOSPC, EDQUOT.
    """
    copy_data.copy(source.fd, target, st.st_size, st, copy_data.Unshared())
    dress(RealObject(target), st, owner, source.attributes)


def dress(what: RealObject, st: os.stat_result, owner: Owner, attributes: dict[bytes, bytes] | None = None) -> None:
    """Give an object to `owner`, as far as the user may, and the mode, the times and perhaps attributes of another.

    Args:
        st: of the other.
        attributes: None to leave those that the object has.

    Raises:
        OSError: EIO, ENOSPC, EDQUOT; EPERM for an object of another user.
    """
    # First, because chown(2) clears set-id bits and capabilities.
    for uid, gid in attempts(*owner):
        try:
            what.chown(uid, gid)
            break
        except OSError as error:
            if error.errno not in REFUSED:
                raise
    if attributes is not None:
        give_xattrs(what, attributes)
    if not stat.S_ISLNK(st.st_mode):
        what.chmod(mode_kept(Facts.of(st), what.stat()))
    what.utime(st.st_atime_ns, st.st_mtime_ns)
