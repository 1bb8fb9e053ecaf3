"""Whether a mount would be refused, found without making anything: what `prepare` checks, for the doctor.

Nothing is created, and locks are held for a moment only. What only shows when it is done is left to the mount: a full
filesystem, a directory that is exchanged meanwhile.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting import prepare
from fuseunion.mounting.checks import in_use, placement, ranches
from fuseunion.mounting.checks.placement import Part, Place, Survey
from fuseunion.mounting.options import Form, Options


def rehearse(options: Options) -> None:
    """Refuse what `prepare` would refuse.

    Raises:
        UserError: LAYERS or BUSY, as `prepare`.
    """
    prepare.refuse_too_many(options.lowers)
    survey = Survey()
    merged = prepare.merged_place(survey, options.target)
    lowers = prepare.lower_places(survey, options)
    if options.form is Form.PLAIN:
        placement.refuse_twice(lowers)
    with ExitStack() as stack:
        for place in lowers:
            if place.is_file:
                from fuseunion.mounting.sources import images  # most mounts have none

                is_upper = prepare.is_upper(survey, options, place)
                images.look_at(place, options.images, writable=False, is_upper=is_upper)
            else:
                stack.callback(os.close, placement.open_directory(place))
        if options.upper and not options.read_only:
            upper = survey.place(Part.UPPER, options.upper)
            if upper.is_file:
                from fuseunion.mounting.sources import images

                prepare.check_image(options, lowers, upper, merged)
                images.look_at(upper, options.images, writable=True)
                return
            work = prepare.work_place(survey, upper, options.work)
            placement.check(lowers, upper, work, merged)
            _rehearse_upper(options, upper, work, stack)
        else:
            placement.check(lowers, None, None, merged)


def _rehearse_upper(options: Options, upper: Place, work: Place, stack: ExitStack) -> None:
    if ranches.may_stand_on(upper.path):
        ranches.refuse(upper.path)
    in_use.refuse_kernel_overlays(upper, work)
    if upper.key is None:
        _refuse_impossible(upper)
        # It would be made on the same filesystem, and nobody can be using it.
        upper_fd, occupancy = os.open(os.path.dirname(upper.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), None
        stack.callback(os.close, upper_fd)
    else:
        upper_fd = _opened(upper, stack)
        if options.form is Form.PLAIN:
            prepare.refuse_unwritable(upper, upper_fd)
        occupancy = in_use.Occupancy(upper, upper_fd)
        stack.callback(occupancy.close)
    if work.key is None:
        _refuse_impossible(work)
        return
    work_fd = _opened(work, stack)
    is_engine = options.form is Form.MOUNT_PROGRAM
    prepare.refuse_foreign_work(work, work_fd, prepare.engine_owners(upper_fd, work_fd) if is_engine else ())
    prepare.judge_work(upper, work, upper_fd, work_fd, default_work=options.work is None)
    if occupancy is None:
        return
    occupancy.add_work(work, work_fd, default=work.path == prepare.default_work_path(upper.path))
    try:
        occupancy.add_inner(work, work_fd)
    except FileNotFoundError:
        pass  # it would be made
    occupancy.enter(mark=False)


def _opened(place: Place, stack: ExitStack) -> int:
    fd = placement.open_found(place)
    stack.callback(os.close, fd)
    return fd


def _refuse_impossible(place: Place) -> None:
    """Refuse a directory that is missing and cannot be made."""
    parent = os.path.dirname(place.path)
    if not os.path.isdir(parent):
        why = f"make the directory '{parent}' first"
    elif not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
        why = f"you may not write in '{parent}'; choose another place"
    else:
        return
    raise UserError(f"{place.part.value} '{place.given}' cannot be made: {why}", ExitCode.LAYERS)
