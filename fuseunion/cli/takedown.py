"""What `fuseunion umount` does for the engines without a daemon, and how the other commands find a ranch."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from fuseunion.cli.progress import Progress
from fuseunion.engines.kernel import overlay
from fuseunion.engines.ranch import corral
from fuseunion.engines.ranch.farm import aside
from fuseunion.engines.ranch.record import marker
from fuseunion.engines.ranch.record.record import Mode, Ranch, opened
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import mountinfo, syscalls
from fuseunion.linux.holders import Holder, holders, holders_beneath


def umount(given: str, path: str, entry: mountinfo.Mount | None, *, lazy: bool, discard: bool) -> bool:
    """Take down a kernel overlay or a ranch of ours.

    Returns:
        False when there is neither.
    Raises:
        UserError: BUSY with the holders; what a ranch could not collect.
    """
    if entry is not None and overlay.is_ours(entry) and not discard:
        _umount_kernel(given, path, entry, lazy=lazy)
        return True
    if marker.find(path) is None:
        return False
    with ranch_at(given) as ranch, Progress("collected") as progress:
        _take_down(given, ranch, progress, lazy=lazy, discard=discard)
    return True


@contextmanager
def ranch_at(given: str) -> Iterator[Ranch]:
    """The ranch that a directory shows, locked.

    Raises:
        UserError: LAYERS when there is none.
    """
    path = os.path.realpath(given)
    state = marker.find(path)
    if state is None:
        raise UserError(f"'{given}' is not a ranch", ExitCode.LAYERS)
    with opened(state) as ranch:
        if ranch.record_or_none is None or ranch.record.merged != path:
            raise UserError(f"the ranch in '{state}' does not stand at '{given}'; was it moved?", ExitCode.LAYERS)
        yield ranch


def _take_down(given: str, ranch: Ranch, report: corral.Report, *, lazy: bool, discard: bool) -> None:
    if ranch.record.mode is Mode.PLAIN and not lazy:
        # Without a mount nothing but this look keeps files from being written while they are collected.
        found = holders_beneath(ranch.record.merged)
        if found:
            raise _busy(given, found)
    try:
        corral.take_down(ranch, discard=discard, lazy=lazy, report=report)
    except OSError as error:
        if error.errno != errno.EBUSY or not aside.is_mounted(ranch):
            raise
        raise _busy(given, holders_beneath(ranch.record.merged)) from None


def _umount_kernel(given: str, path: str, entry: mountinfo.Mount, *, lazy: bool) -> None:
    flags = syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(fd)
    finally:
        os.close(fd)
    try:
        syscalls.umount2(os.fsencode(path), flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _busy(given, holders(entry.device)) from None
        raise UserError(f"cannot unmount '{given}': {error.strerror}", ExitCode.FAILURE) from None
    if not lazy:
        overlay.after_umount(entry)


def _busy(given: str, found: list[Holder]) -> UserError:
    users = ", ".join(str(holder) for holder in found) or "a process that you may not see"
    return UserError(f"'{given}' is busy: used by {users}; end that and try again, or use --lazy", ExitCode.BUSY)
