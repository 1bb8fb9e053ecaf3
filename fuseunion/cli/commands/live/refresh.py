"""`fuseunion refresh MERGED [PATH...]`: a lower was changed underneath; forget what was remembered of it.

The daemon forgets what it remembers, and tells the kernel which attributes and listings to drop. Two things it must not
have the kernel do, because the kernel would wait for locks that a request to the same daemon may hold
(fs/fuse/dir.c fuse_reverse_inval_entry, mm/truncate.c invalidate_inode_pages2_range): so they are done from here, where
only this command waits.

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

from fuseunion.cli.commands.live.inside import path_in
from fuseunion.cli.commands.live.reaching import reach
from fuseunion.cli.parser import CommandParser
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import syscalls
from fuseunion.linux.runtime import frames
from fuseunion.linux.runtime.conversation import Conversation, RefusedError
from fuseunion.linux.runtime.frames import Record

HELP = """\
Usage: fuseunion refresh MERGED [PATH...]

Forgets what a mount remembers of its lowers, after one of them was changed underneath: names, attributes and data, at
each PATH and beneath it, or everywhere. What was changed in the mount stays, and so does what is open. Mounts through
FUSE only.

A PATH that leads into MERGED is that path; any other is one from the root of the mount.

Options:
  -h, --help   print this help

Examples:
  fuseunion refresh ~/merged
  fuseunion refresh ~/merged ~/merged/usr/lib
"""

_ELSEWHERE = "/proc/self/status"
"""A file on another filesystem than any mount of ours."""

_LOOKED_UP = (errno.EXDEV, errno.EEXIST, errno.EROFS)
"""What link(2) answers after it has looked up the new name."""

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP)
"""Names on the way that lead elsewhere now: they were looked up again then."""

_BENEATH = syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS


def main(arguments: list[str]) -> int:
    """Have a mount forget.

    Raises:
        UserError: USAGE; LAYERS when nothing of ours is at MERGED, or a path leads out of it; UNAVAILABLE where nobody
            can be asked, or the mount is not seen from here; FAILURE for directories that this user may not enter.
    """
    parser = CommandParser("refresh", HELP)
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if not asked.operands:
        raise UserError("give a mounted directory: fuseunion refresh MERGED [PATH...]")
    given, *paths = asked.operands
    status, conversation = reach(given)
    with conversation:
        if status.namespace is not None:
            inside = f"nsenter -t {status.namespace} -U -m --preserve-credentials"
            raise UserError(
                f"'{given}' is seen by other processes only; run this there: {inside}", ExitCode.UNAVAILABLE
            )
        try:
            root = os.open(status.merged, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            raise UserError(
                f"'{given}' may be entered by the user who mounted it alone; run this as that user",
                ExitCode.UNAVAILABLE,
            ) from None
        try:
            conversation.send("refresh", path=[path_in(status, path) for path in paths] or [""])
            closed = 0
            while "done" not in (record := _next(conversation)):
                closed += "going" not in record and not _look_again(root, record)
        except RefusedError as refusal:
            raise UserError(f"'{given}' cannot be refreshed: {refusal.message}", ExitCode.FAILURE) from None
        finally:
            os.close(root)
    if closed:
        raise UserError(
            f"names in directories of '{given}' that this user may not enter are not looked up again; run this as root",
            ExitCode.FAILURE,
        )
    return ExitCode.OK


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
