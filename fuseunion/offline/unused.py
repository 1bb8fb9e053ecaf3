"""An upper directory that nothing is mounted on, and nothing will be, for as long as a command has it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass

from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting import log
from fuseunion.mounting.checks import elsewhere, in_use, placement, ranches
from fuseunion.mounting.prepare import default_work_path, refuse_foreign_work, work_place


@dataclass(frozen=True, slots=True)
class Unused:
    """An upper and its work directory, open and locked.

    Attributes:
        root_fd: of the upper.
        path: as it was given.
        work_fd: of the work directory; None where there is none.
    """

    root_fd: int
    path: str
    work_fd: int | None


def open_upper(stack: ExitStack, path: str, work: str | None) -> Unused:
    """Take an upper for a command.

    Args:
        stack: gives it back.
        path: of the upper.
        work: its work directory; None for the default one, which is there only while it holds something.

    Raises:
        UserError: LAYERS: no directory, a ranch's, a work directory that is not ours; BUSY: mounted.
    """
    ranches.refuse(os.path.realpath(path))
    survey = placement.Survey()
    upper = survey.place(placement.Part.UPPER, path)
    root_fd = _open_unused(stack, upper)
    occupancy = in_use.Occupancy(upper, root_fd)
    stack.callback(occupancy.close)
    work_fd = None
    if work is not None or os.path.lexists(default_work_path(os.path.realpath(path))):
        place = work_place(survey, upper, work)
        work_fd = _open_unused(stack, place)
        refuse_foreign_work(place, work_fd)
        occupancy.add_work(place, work_fd, default=work is None)
        try:
            occupancy.add_inner(place, work_fd)
        except FileNotFoundError:
            pass  # never mounted with, or left in order
        except OSError as error:
            raise placement.refusal(place.part, place.given, error) from None
    occupancy.enter(mark=False)
    for line in occupancy.ignored:
        log.tell(f"warning: {line}")
    return Unused(root_fd, path, work_fd)


def _open_unused(stack: ExitStack, place: placement.Place) -> int:
    """A directory to which no overlay and no other program writes."""
    fd = placement.open_found(place)
    stack.callback(os.close, fd)
    in_use.refuse_kernel_overlays(place)
    writer = elsewhere.writer_of(fd)
    if writer is not None:
        raise UserError(f"{place.part.value} '{place.given}' is in use by {writer}; unmount it first", ExitCode.BUSY)
    return fd
