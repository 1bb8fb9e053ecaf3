"""e2fsck, and what it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from fuseunion.errors import ExitCode, UserError
from fuseunion.images.tools import programs
from fuseunion.images.tools.opened import Opened


class Care(Enum):
    """How much may be changed; the value is e2fsck's option."""

    NOTHING = "-n"
    SAFE = "-p"
    """What loses nothing: the journal, counts, bitmaps."""
    EVERYTHING = "-y"
    """Whatever makes a filesystem of it again; what no directory leads to goes to lost+found."""


class Outcome(Enum):
    """What e2fsck has found, by its exit status (e2fsck(8))."""

    CLEAN = "clean"
    CORRECTED = "corrected"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Report:
    """One look at a filesystem.

    Attributes:
        outcome: how it is now.
        said: what e2fsck said of it, line by line, without its banner.
    """

    outcome: Outcome
    said: tuple[str, ...]


_NOT_CORRECTED = 4

_BAR = re.compile("\1[^\2]*\2")
"""What `-C 0` prints between the lines (e2fsck/unix.c, e2fsck_simple_progress)."""


class _Percent:
    """Finds how far e2fsck is in what it prints."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report

    def __call__(self, piece: str) -> None:
        if numbers := re.findall(r"\| +([0-9]+)\.[0-9]%", piece):
            self._report(int(numbers[-1]))


def check(image: Opened, care: Care, report: Callable[[int], None] | None = None) -> Report:
    """Look at a whole ext filesystem, and repair it as far as is allowed.

    Args:
        image: opened to be written, but for Care.NOTHING.
        report: told how far it is, in percent.

    Raises:
        UserError: UNAVAILABLE without e2fsck; FAILURE when it cannot work, as on a filesystem that is mounted.
    """
    return check_file(image.fd, image.path, image.offset, care, report)


def check_file(fd: int, path: str, offset: int, care: Care, report: Callable[[int], None] | None = None) -> Report:
    """The same of a filesystem in a file.

    Args:
        path: for messages.
        offset: where it begins, in bytes.
    """
    seen = _Percent(report) if report else None
    target = programs.by_descriptor(fd, offset)
    progress = ["-C", "0"] if seen else []
    status, printed = programs.run(
        f"check '{path}'",
        ["e2fsck", "-f", *progress, care.value, target],
        fds=(fd,),
        accepted=range(8),
        seen=seen,
    )
    if report:
        report(100)  # a small one is looked at before e2fsck says how far it is
    lines = [line.strip() for line in _BAR.sub("", printed).replace(target, path).splitlines()]
    said = tuple(line for line in lines if line and not line.startswith("Pass ") and not programs.BANNER.match(line))
    if status & _NOT_CORRECTED:
        return Report(Outcome.DAMAGED, said)
    return Report(Outcome.CORRECTED if status & 3 else Outcome.CLEAN, said)


def require_clean(fd: int, path: str) -> None:
    """Put the filesystem that a file is in order before it is changed.

    Raises:
        UserError: LAYERS: that takes more than what loses nothing.
    """
    if check_file(fd, path, 0, Care.SAFE).outcome is Outcome.DAMAGED:
        raise UserError(
            f"'{path}' has errors that cannot be corrected without a loss; look at them with: fuseunion image check "
            f"--dry-run {path}",
            ExitCode.LAYERS,
        )
