"""An upper that is not mounted and that this command has for itself, as it lies there: nothing is made, nothing is
cleaned, and no work directory comes into being. `offline/layers/opening.py` opens one as a mount would.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import NamedTuple

from fuseunion.core.ownership.store import OwnershipStore
from fuseunion.core.ownership.store_choice import choose, has_database
from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting import log
from fuseunion.mounting.checks import elsewhere, in_use, placement, ranches
from fuseunion.mounting.prepare import default_work_path, refuse_foreign_work, work_place


class HeldUpper(NamedTuple):
    """Directories that nobody else uses; the descriptors belong to the stack that they were opened with.

    Attributes:
        root_fd: of the upper.
        path: of the upper, as it was given.
        work_fd: of the work directory; None where there is none.
        work_path: of the work directory, there or not.
        default_work: it is the default one.
    """

    root_fd: int
    path: str
    work_fd: int | None
    work_path: str
    default_work: bool

    def store(self) -> OwnershipStore | None:
        """Where owners and modes are stored, which the caller closes; None where they are real.

        Raises:
            OSError: of the layer and of the database.
        """
        return choose(self.root_fd, None, self.work_fd)

    @property
    def has_database(self) -> bool:
        """Whether owners are stored in a database."""
        return self.work_fd is not None and has_database(self.work_fd)


def hold(stack: ExitStack, path: str, work: str | None) -> HeldUpper:
    """Lock an upper, and its work directory if it has one.

    Args:
        stack: what is opened and locked lasts as long as this.
        work: the work directory; None for the default one, which is there only while it holds something.

    Raises:
        UserError: LAYERS; BUSY where it is mounted, or another program writes to it.
    """
    ranches.refuse(os.path.realpath(path))
    survey = placement.Survey()
    upper = survey.place(placement.Part.UPPER, path)
    root_fd = _open_unused(stack, upper)
    occupancy = in_use.Occupancy(upper, root_fd)
    stack.callback(occupancy.close)
    usual = default_work_path(os.path.realpath(path))
    work_fd = None
    if work is not None or os.path.lexists(usual):
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
    return HeldUpper(root_fd, path, work_fd, work or usual, work is None)


def _open_unused(stack: ExitStack, place: placement.Place) -> int:
    """A directory to which no overlay and no other program writes."""
    fd = placement.open_found(place)
    stack.callback(os.close, fd)
    in_use.refuse_kernel_overlays(place)
    writer = elsewhere.writer_of(fd)
    if writer is not None:
        raise UserError(f"{place.part.value} '{place.given}' is in use by {writer}; unmount it first", ExitCode.BUSY)
    return fd
