"""Finding and making places in a tree that anybody may have made.

A path is resolved as if the tree were the root: absolute links lead back into it, `..` does not lead out of it
(openat2(2), RESOLVE_IN_ROOT), and links of /proc lead nowhere. What is found is a descriptor, and what is mounted there
is mounted by it, so that nobody can exchange the place in between.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from contextlib import suppress
from typing import NamedTuple

from fuseunion.linux import syscalls
from fuseunion.linux.os_error import os_error

_RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS

_TRIES = 1000

_MAX_LINKS = 40
"""As in the kernel (include/linux/namei.h, MAXSYMLINKS)."""


class Made(NamedTuple):
    """A place that was made.

    Attributes:
        ino: of what was made.
        path: in the tree.
    """

    ino: int
    path: str


def find(root_fd: int, path: str) -> int:
    """An O_PATH descriptor of what a path in the tree leads to.

    Raises:
        OSError: ENOENT, ELOOP and what else openat2(2) says.
    """
    for _ in range(_TRIES):
        try:
            return syscalls.openat2(root_fd, os.fsencode(path), os.O_PATH, _RESOLVE)
        except BlockingIOError:
            continue  # something was mounted or renamed somewhere, while a `..` was followed (openat2(2), EAGAIN)
    raise os_error(errno.EAGAIN, os.fsencode(path))


def find_or_make(root_fd: int, path: str, made: list[Made], own: Collection[int], *, directory: bool) -> int:
    """The same; what is missing is made, directories with mode 0755 and empty files with mode 0644.

    Args:
        made: gets what was made, in this order.
        own: st_dev of the filesystems on which something may be made. A link of the tree may lead to what was bound.
        directory: what is to be there.

    Raises:
        OSError: ENOTDIR or EISDIR where something else is there; EROFS, EACCES where nothing can be made; EXDEV where
            it would be made on a filesystem of others.
    """
    fd = _descend(root_fd, path, made, own, directory, _MAX_LINKS)
    if stat.S_ISDIR(os.fstat(fd).st_mode) != directory:
        os.close(fd)
        raise os_error(errno.ENOTDIR if directory else errno.EISDIR, os.fsencode(path))
    return fd


def by_descriptor(fd: int) -> bytes:
    """The path of what a descriptor is open at, for mount(2)."""
    return b"/proc/self/fd/%d" % fd


def remove(root_fd: int, made: list[Made]) -> None:
    """Take away what was made and is still there, empty; what somebody has put something into stays."""
    for ino, path in reversed(made):
        parent, name = os.path.split(path)
        with suppress(OSError):  # it is no longer there, or no longer empty, or nothing can be removed
            above = find(root_fd, parent or "/")
            try:
                st = os.stat(name, dir_fd=above, follow_symlinks=False)
                if st.st_ino == ino and stat.S_ISDIR(st.st_mode):
                    os.rmdir(name, dir_fd=above)
                elif st.st_ino == ino and stat.S_ISREG(st.st_mode) and st.st_size == 0:
                    os.unlink(name, dir_fd=above)
            finally:
                os.close(above)


def _descend(root_fd: int, path: str, made: list[Made], own: Collection[int], directory: bool, links: int) -> int:
    try:
        return find(root_fd, path)
    except FileNotFoundError:
        if links == 0:
            raise os_error(errno.ELOOP, os.fsencode(path)) from None
    parent, name = os.path.split(path.rstrip("/") or "/")
    above = _descend(root_fd, parent or "/", made, own, True, links - 1)
    try:
        if name in ("", ".", ".."):
            raise os_error(errno.ENOENT, os.fsencode(path))
        if os.fstat(above).st_dev not in own:
            raise os_error(errno.EXDEV, os.fsencode(path))
        if directory:
            os.mkdir(name, 0o755, dir_fd=above)
        else:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=above))
        made.append(Made(os.stat(name, dir_fd=above, follow_symlinks=False).st_ino, f"{parent}/{name}"))
    except FileExistsError:
        # A link that leads to nothing yet.
        target = os.readlink(name, dir_fd=above)
        return _descend(root_fd, os.path.join(parent, target), made, own, directory, links - 1)
    finally:
        os.close(above)
    return find(root_fd, path)
