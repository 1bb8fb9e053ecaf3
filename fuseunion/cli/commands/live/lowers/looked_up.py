"""Having the kernel look up names of a mount again, and drop pages of its files.

A daemon must not have the kernel do this, because the kernel would wait for locks that a request to the same daemon may
hold (fs/fuse/dir.c fuse_reverse_inval_entry, mm/truncate.c invalidate_inode_pages2_range): so it is done from here,
where only this command waits.

* Names are looked up again. link(2) from another filesystem does no more than that: it asks for the new name whatever
  is remembered of it (LOOKUP_EXCL, fs/fuse/dir.c fuse_dentry_revalidate), and then ends with EXDEV, or EEXIST
  (fs/namei.c do_linkat).
* Pages of files are dropped with posix_fadvise(2). Where size or time of modification differ, the kernel drops them by
  itself at the next read.
"""

from __future__ import annotations

import errno
import os
import stat

from fuseunion.engines.status import Status
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import syscalls
from fuseunion.linux.runtime import frames
from fuseunion.linux.runtime.conversation import Conversation, RefusedError
from fuseunion.linux.runtime.frames import Record

_ELSEWHERE = "/proc/self/status"
"""A file on another filesystem than any mount of ours."""

_LOOKED_UP = (errno.EXDEV, errno.EEXIST, errno.EROFS)
"""What link(2) answers after it has looked up the new name."""

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP)
"""Names on the way that lead elsewhere now: they were looked up again then."""

_BENEATH = syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS


def root_of(status: Status, given: str) -> int:
    """A descriptor of the root of a mount, which the caller closes.

    Args:
        given: its path as the user wrote it.

    Raises:
        UserError: UNAVAILABLE where the mount is not seen from here, or may not be entered.
    """
    if status.namespace is not None:
        inside = f"nsenter -t {status.namespace} -U -m --preserve-credentials"
        raise UserError(f"'{given}' is seen by other processes only; run this there: {inside}", ExitCode.UNAVAILABLE)
    try:
        return os.open(status.merged, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        raise UserError(
            f"'{given}' may be entered by the user who mounted it alone; run this as that user", ExitCode.UNAVAILABLE
        ) from None


def look_again(root: int, conversation: Conversation) -> tuple[str, bool]:
    """Do what the daemon says, until it is done, or waits for the next order.

    Args:
        root: of the mount.

    Returns:
        `done` or `ready`; and False where names are in directories that this user may not enter.

    Raises:
        RefusedError: as Conversation.receive; when the daemon has ended.
    """
    allowed = True
    while True:
        record = _next(conversation)
        for word in ("done", "ready"):
            if word in record:
                return word, allowed
        if "going" not in record:
            allowed &= _look_again(root, record)


def refuse_closed(given: str) -> UserError:
    """What is said when `look_again` could not look everywhere.

    Args:
        given: the path of the mount as the user wrote it.
    """
    return UserError(
        f"names in directories of '{given}' that this user may not enter are not looked up again; as root run: "
        f"fuseunion refresh '{given}'",
        ExitCode.FAILURE,
    )


def _next(conversation: Conversation) -> Record:
    records = conversation.receive()
    if not records:
        raise RefusedError("its daemon has ended")
    return records[0]


def _look_again(root: int, record: Record) -> bool:
    """Have the kernel look up names of a directory again, and drop pages of its files.

    Returns:
        False where this user may not.
    """
    path = frames.first(record, "directory") or "."
    try:
        directory = syscalls.openat2(root, os.fsencode(path), os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, _BENEATH)
    except OSError as error:
        return error.errno in (*_GONE, errno.EXDEV)
    allowed = True
    try:
        for name in record.get("name", ()):
            allowed &= _look_up(directory, name)
        for name in record.get("file", ()):
            _drop_pages(directory, name)
    finally:
        os.close(directory)
    return allowed


def _look_up(directory: int, name: str) -> bool:
    try:
        os.link(_ELSEWHERE, name, dst_dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        return error.errno in _LOOKED_UP or error.errno in _GONE
    raise AssertionError("a link from one filesystem to another")


def _drop_pages(directory: int, name: str) -> None:
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            return
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return  # it may not be read, so that few pages are there, or it has gone
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
