"""Permissions that a user lacks on what is the user's own, lent for as long as they are needed.

Only what an object's owner denies to the owner can be lent, and root needs nothing. In the farm, where a killed command
must not leave a mode behind, ledger.py writes down what is lent.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from fuseunion.core.disk.realdir import RealDir
from fuseunion.linux.objects.permission import lent

READ_FILE, READ_DIRECTORY, WRITE_DIRECTORY = 0o400, 0o500, 0o700
"""What an owner needs to read a file, to go through a directory, and to make names in it."""

Legible = Callable[[RealDir, bytes | None], AbstractContextManager[None]]
"""Lends the user the permission to read a directory and a regular file in it, as `legible` does."""


@contextmanager
def legible(real: RealDir, name: bytes | None = None) -> Iterator[None]:
    """Let the user read what the user's own mode forbids, in the farm or in UPPER.

    Args:
        real: a directory; one of a lower stays as it is.
        name: a regular file in it.
    """
    if not real.layer.writable or os.geteuid() == 0:
        yield
        return
    with ExitStack() as stack:
        if lacking(os.fstat(real.fd()), READ_DIRECTORY) is not None:
            stack.enter_context(lent(os.dup(real.fd())))
        if name is not None and lacking(real.stat(name), READ_FILE) is not None:
            stack.enter_context(lent(real.hold(name)))
        yield


def lacking(st: os.stat_result | None, rights: int) -> int | None:
    """The permissions of an object, if it is the user's and its mode denies the user some of the rights; else None.

    Args:
        st: its lstat; None for an object that is not there.
    """
    if st is None or stat.S_ISLNK(st.st_mode) or st.st_mode & rights == rights or os.geteuid() != st.st_uid:
        return None
    return stat.S_IMODE(st.st_mode) if st.st_uid else None
