"""What the mode bits forbid to the daemon as the plain owner of its files, though the user may do it.

A user may remove, rename or change their own files in a directory that they closed to themselves, and read the marks of
a file that they may not read; the kernel has allowed it by the rules for what the mount shows. Where the daemon has
CAP_DAC_OVERRIDE nothing stands in its way. Where it is the plain owner of the files, it lends itself the missing bits
for the length of a call. A daemon that is killed meanwhile leaves the bits behind, on files of its own user.

This is the only module that lends.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol, TypeVar

from fuseunion.linux.objects.real_object import RealObject

T = TypeVar("T")

_RIGHTS = {stat.S_IFDIR: 0o700, stat.S_IFREG: 0o600}
_DIRECTORY = frozenset({stat.S_IFDIR})
_HOLD = os.O_PATH | os.O_NOFOLLOW


class OpenDirectory(Protocol):
    """A directory of a layer (realdir.RealDir)."""

    def fd(self) -> int:
        """A descriptor of it, borrowed."""


@contextmanager
def lent(fd: int, kinds: Container[int] = frozenset(_RIGHTS)) -> Iterator[None]:
    """Give the owner all rights on a directory or regular file for a while; closes the O_PATH descriptor it is given.

    By descriptor, because the name may lead elsewhere afterwards.

    Args:
        kinds: S_IFMT bits of what is to be opened; anything else stays as it is.
    """
    try:
        held = RealObject(fd)
        mode = held.stat().st_mode
        rights = _RIGHTS.get(stat.S_IFMT(mode), 0) if stat.S_IFMT(mode) in kinds else 0
        if mode & rights == rights:
            yield
            return
        held.chmod(stat.S_IMODE(mode) | rights)
        try:
            yield
        finally:
            held.chmod(stat.S_IMODE(mode))
    finally:
        os.close(fd)


def as_owner_of(held: RealObject, operation: Callable[[], T]) -> T:
    """Run an operation on an object that is held by a descriptor, though its mode forbids it to its owner.

    An attribute of a user needs read or write permission on the object (fs/xattr.c xattr_permission).
    """
    try:
        return operation()
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
    with lent(os.dup(held.fd)):
        return operation()


def opened_again(fd: int) -> int:
    """An O_RDONLY descriptor of a directory that is held, though its mode forbids it to its owner.

    Raises:
        OSError: EACCES, EPERM for another user's.
    """
    return as_owner_of(RealObject(fd), lambda: os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd))


def as_owner(
    operation: Callable[[], T], *changed: OpenDirectory, moved: Sequence[tuple[OpenDirectory, bytes]] = ()
) -> T:
    """Run an operation that changes directories, though their mode forbids it to their owner.

    A chmod of a file in a directory of mode 0555 is allowed to its owner, but copying the file up needs to write in
    that directory; and a directory of mode 0555 can be removed or copied up, but not be moved to another directory,
    which writes its ".." (rename(2), EACCES).

    Args:
        changed: the directories in which a name comes or goes, or is looked for.
        moved: objects that change their directory.
    """
    try:
        return operation()
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
    with ExitStack() as stack:
        for directory in changed:
            stack.enter_context(lent(os.dup(directory.fd())))
        for directory, name in moved:
            stack.enter_context(lent(os.open(name, _HOLD, dir_fd=directory.fd()), kinds=_DIRECTORY))
        return operation()


@contextmanager
def opened(directory: OpenDirectory | None) -> Iterator[None]:
    """Let a daemon that is the plain owner of a directory of the upper into it for the length of a block.

    The user has closed the directory, and may remove or rename it all the same.

    Args:
        directory: None where there is no such directory.
    """
    if directory is None or os.geteuid() == 0:
        yield
        return
    with lent(os.dup(directory.fd())):
        yield
