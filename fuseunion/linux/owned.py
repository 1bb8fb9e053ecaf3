"""State that is believed: directories and files that only this user can have put where they are.

A work directory, the state of a ranch or a database is often kept in a directory that somebody else may write: beside
an UPPER in another user's home, for instance. That user can put anything there under its name: a link to a directory of
root, a directory of forged files, a FIFO that nobody writes to. So state is used only when all of this is true:

* no symbolic link is followed on the way to it (openat2(2), RESOLVE_NO_SYMLINKS);
* it belongs to the effective user, which nobody else can bring about but by moving what belongs to that user already;
* nobody else may write it: neither everybody nor a group, but for the group of the user alone, which has the number of
  the user (login.defs(5), USERGROUPS_ENAB);
* a file is a regular one with one name, is opened without waiting (O_NONBLOCK), and is read up to a limit.

What is below such a directory is reached from its descriptor, since its name may mean another directory a moment later.
"""

import errno
import os
import stat
from collections.abc import Collection

from fuseunion.linux import syscalls

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def objection(st: os.stat_result, owners: Collection[int] = ()) -> str | None:
    """Why an object is not this user's alone; None when it is.

    Args:
        st: of the object itself, from its descriptor.
        owners: who else may own it.
    """
    if st.st_uid != os.geteuid() and st.st_uid not in owners:
        return f"belongs to another user ({st.st_uid})"
    private_group = st.st_gid == os.getegid() == os.geteuid()
    if st.st_mode & stat.S_IWOTH or (st.st_mode & stat.S_IWGRP and not private_group):
        return "may be written by other users"
    return None


def open_without_links(path: str | bytes, flags: int = _DIRECTORY, dir_fd: int = syscalls.AT_FDCWD) -> int:
    """Open a path on which no symbolic link is followed, neither on the way nor at the end.

    Raises:
        OSError: ELOOP for a link; else as open(2).
    """
    return syscalls.openat2(dir_fd, os.fsencode(path), flags | os.O_NOFOLLOW, syscalls.RESOLVE_NO_SYMLINKS)


def open_directory(path: str | bytes, dir_fd: int = syscalls.AT_FDCWD, *, owners: Collection[int] = ()) -> int:
    """An O_RDONLY descriptor of a directory that is this user's alone.

    Args:
        path: without symbolic links.
        dir_fd: where a relative path begins.
        owners: who else may own it.

    Raises:
        OSError: EPERM, with the reason as its text; ELOOP, ENOTDIR, as open(2).
    """
    fd = open_without_links(path, dir_fd=dir_fd)
    reason = objection(os.fstat(fd), owners)
    if reason is not None:
        os.close(fd)
        raise OSError(errno.EPERM, reason, path)
    return fd


def open_file(name: str | bytes, dir_fd: int, *, owners: Collection[int] = ()) -> int:
    """An O_RDONLY descriptor of a regular file that is this user's alone; never waits.

    Args:
        name: in the directory `dir_fd`.
        owners: who else may own it.

    Raises:
        OSError: EPERM, with the reason as its text; ELOOP for a link; ENXIO for a socket; as open(2).
    """
    fd = os.open(name, _FILE, dir_fd=dir_fd)
    st = os.fstat(fd)
    reason = objection(st, owners)
    if not stat.S_ISREG(st.st_mode):
        reason = "is not a regular file"
    elif st.st_nlink > 1:
        # Who may write the directory could have given it the name of any file, where fs.protected_hardlinks is off.
        reason = "has other names"
    if reason is not None:
        os.close(fd)
        raise OSError(errno.EPERM, reason, name)
    return fd


def read_file(name: str | bytes, dir_fd: int, limit: int, *, owners: Collection[int] = ()) -> bytes:
    """The content of a regular file that is this user's alone.

    Args:
        name: in the directory `dir_fd`.
        limit: bytes that it may have.
        owners: who else may own it.

    Raises:
        OSError: as `open_file`; EFBIG beyond the limit; EIO.
    """
    fd = open_file(name, dir_fd, owners=owners)
    with open(fd, "rb", buffering=0) as file:
        data = bytearray()
        while piece := file.read(limit + 1 - len(data)):
            data += piece
            if len(data) > limit:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), name)
    return bytes(data)


def new_file(name: str | bytes, dir_fd: int, mode: int = 0o600) -> int:
    """An O_RDWR descriptor of a new file, in place of what has the name; that is removed and never written.

    Raises:
        OSError: EISDIR, EEXIST; as open(2) and unlink(2).
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass  # as it mostly is
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=dir_fd)
