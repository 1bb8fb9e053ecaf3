"""What a daemon uses of the machine: memory, descriptors, and the inodes that it knows because the kernel does."""

from __future__ import annotations

import os
from typing import NamedTuple

from tests.support import libc, processes
from tests.support.mounts import FuseunionMount
from tests.support.waiting import wait_until

COUNTS = "user.fuseunion.counts"
"""As fuseunion/engines/fuse/asking/questions.py has it."""

PER_INODE = 614
"""Bytes of memory that one known inode may cost. About 460 with Python 3.11, short names and one name each."""


class Usage(NamedTuple):
    """One look at a daemon.

    Attributes:
        inodes: known, the root among them.
        handles: open files and directories.
        resident: KiB of memory.
        descriptors: open ones of any kind.
    """

    inodes: int
    handles: int
    resident: int
    descriptors: int


def counts(mount: FuseunionMount) -> tuple[int, int]:
    """How many inodes the daemon knows, and how many files and directories are open."""
    inodes, handles = os.getxattr(mount.merged, COUNTS).split()
    return int(inodes), int(handles)


def usage(mount: FuseunionMount) -> Usage:
    """Look now."""
    inodes, handles = counts(mount)
    return Usage(inodes, handles, processes.resident_kib(mount.daemon), len(processes.descriptors(mount.daemon)))


def forget(mount: FuseunionMount, left: int = 1, timeout: float = 60.0) -> None:
    """Make the kernel forget this mount's entries and inodes, and wait until the daemon has done so too; needs root.

    A remount that changes nothing shrinks the dentry cache of its filesystem, and of no other (fs/super.c
    reconfigure_super, shrink_dcache_sb). FORGET has no answer, so this waits.

    :param left: inodes that are in use, the root among them
    """
    # nosuid, nodev, noexec and ro have the same bits in statvfs(3) and mount(2), and stay as they are.
    kept = os.statvfs(mount.merged).f_flag & (os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC)
    libc.mount("none", str(mount.merged), "", libc.MS_REMOUNT | kept)
    wait_until(lambda: counts(mount)[0] <= left, f"the daemon to know no more than {left} inodes", timeout)
