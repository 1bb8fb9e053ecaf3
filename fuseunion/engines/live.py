"""A mount that an engine has recognised as its own, and what keeps it from being flushed or stopped."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import mountinfo


class LiveMount(NamedTuple):
    """A mount, or what stands for one, that an engine has recognised as its own.

    Attributes:
        given: the path as the user wrote it, for messages.
        path: absolute, without symbolic links.
        entry: its line in mountinfo; None for what shows the union without a mount.
    """

    given: str
    path: str
    entry: mountinfo.Mount | None


class BusyError(Exception):
    """The mount is in use and was not taken away; `Engine.holders` says who uses it."""


def is_dead(path: str) -> bool:
    """Whether nobody serves the mount that lies at a path. Attributes may still be cached; the space on it never is."""
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def cannot_write_out(live: LiveMount, error: OSError) -> UserError:
    """The error of a mount whose changes cannot be put on disk."""
    return UserError(f"'{live.given}' cannot be written to disk: {error.strerror}", ExitCode.FAILURE)
