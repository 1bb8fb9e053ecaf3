"""What can be wrong with an upper: one finding is one thing, with the system calls that put it right, if any do.

A repair is one system call, or a first one that changes nothing of what is shown and a second one that then changes
nothing either. So it can be cut off anywhere: the upper itself says what is still to be done, and the same command
does it. It removes marks, whiteouts and copies that no name shows, never a file of a user. What it takes away is
described in a journal before (journal.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from fuseunion.offline.upkeep.checking.described import Had


class Severity(Enum):
    """How bad it is."""

    ERROR = "error"
    """Something cannot be used, or shows something else than it should."""
    LEFTOVER = "leftover"
    """It takes space or time and means nothing."""
    NOTE = "note"
    """Good to know; nothing has to be done."""


class Repair(NamedTuple):
    """What puts one thing right.

    Attributes:
        does: in a word or two, for the journal.
        call: does it; raises OSError, and nothing has changed then.
        had: what is there that it changes, for the journal; raises OSError.
    """

    does: str
    call: Callable[[], None]
    had: Callable[[], Had]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing.

    Attributes:
        code: what kind of thing, for scripts.
        path: where, below the upper or the work directory.
        text: what a person is told.
        repair: puts it right. None where only a person can.
        in_work: the path is below the work directory.
    """

    code: str
    severity: Severity
    path: bytes
    text: str
    repair: Repair | None = None
    in_work: bool = False
