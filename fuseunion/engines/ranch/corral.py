"""A whole ranch: made, gone on with, collected, taken down.

Making:      record "building" -> layers aside -> build -> inject -> record "live" -> mount the farm
Taking down: unmount the farm -> record "collecting" -> collect, sync -> record "collected" -> remove all

Each arrow may be where the power fails. `create` goes on with a build and mounts a farm again that was lost with its
namespace; `take_down` goes on with everything else. The steps themselves are in making.py and collecting/.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from fuseunion.engines.engine import Report
from fuseunion.engines.ranch import making
from fuseunion.engines.ranch.collecting.collector import Collector
from fuseunion.engines.ranch.farm import aside, inject
from fuseunion.engines.ranch.record.ledger import Ledger
from fuseunion.engines.ranch.record.owners import Owners
from fuseunion.engines.ranch.record.record import Mode, Phase, Ranch, Record, opened, read
from fuseunion.engines.ranch.view import for_view, known_owners, opened_farm, opened_view, refuse_other_farm, viewed
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import syscalls
from fuseunion.mounting.checks import same_lowers
from fuseunion.mounting.checks.ranches import beside
from fuseunion.mounting.handover import stored_owners
from fuseunion.mounting.options import Options
from fuseunion.mounting.prepare import prepare

# -- making ----------------------------------------------------------------------------------------------------------


def create(options: Options, report: Report) -> Path:
    """Make the ranch that the options ask for, or go on with one that was interrupted.

    Args:
        report: told after each object of the farm how many there are.

    Returns:
        Its state directory.

    Raises:
        UserError: LAYERS, BUSY, FAILURE; UNAVAILABLE for what links cannot show. A ranch that was new has left nothing
            behind.
    """
    merged = os.path.realpath(options.target)
    state = beside(os.path.realpath(options.upper) if options.upper else merged)
    if not options.upper and not options.ephemeral:
        raise UserError(
            "a ranch cannot be read-only; give an UPPER directory, or use --ephemeral", ExitCode.UNAVAILABLE
        )
    asked = Record(
        phase=Phase.BUILDING,
        mode=Mode.MOUNTED,
        merged=merged,
        upper=os.path.realpath(options.upper) if options.upper else None,
        work=os.path.realpath(options.work) if options.work else None,
        lowers=tuple(os.path.realpath(lower) for lower in options.lowers),
        links=options.ranch.links,
        depth=options.ranch.depth,
        copies=options.ranch.copies,
        injected=inject.plan(options.ranch.inject, merged, options.ranch.links),
        allow_writable_lower=options.ranch.allow_writable_lower,
        volatile=options.volatile,
        owners=Owners.mine(),
    )
    with ExitStack() as stack:
        # Everything that is wrong with the directories is found here, before anything is made.
        prepared = prepare(for_view(options, options.lowers), for_ranch=True) if read(state) is None else None
        if prepared is not None:
            stack.callback(prepared.close)
            stored = stored_owners(prepared)
            if stored is not None:
                raise UserError(
                    f"ranch: '{stored}' keeps owners in attributes or a database, which links cannot show",
                    ExitCode.UNAVAILABLE,
                )
        ranch = stack.enter_context(opened(state, make=True))
        if ranch.record_or_none is not None:
            _go_on(ranch, asked, report)
            return state
        if prepared is None:
            raise UserError(f"the ranch in '{state}' was just taken down; try again", ExitCode.BUSY)
        _check_target(asked)
        asked = replace(
            asked,
            merged_mode=os.stat(merged).st_mode & 0o7777,
            upper_identity=same_lowers.lasting_identity(prepared.upper.fd) if prepared.upper is not None else None,
        )
        try:
            ranch.write(asked)
            making.put_aside(ranch)
        except BaseException:
            making.forget(ranch)
            raise
        # From here on everything in MERGED is ours to remove.
        try:
            view = opened_view(prepared, options, ranch)
            stack.callback(view.union.close)
            making.build(ranch, view, report)
        except BaseException:
            making.remove(ranch)
            raise
        prepared.keep()
        if ranch.record.mode is Mode.MOUNTED:
            aside.mount_farm(ranch)
        return state


def _go_on(ranch: Ranch, asked: Record, report: Report) -> None:
    record = ranch.record
    same = replace(
        asked,
        phase=record.phase,
        mode=record.mode,
        injected=record.injected,
        merged_mode=record.merged_mode,
        owners=record.owners,
        upper_identity=record.upper_identity,
    )
    how = f"take that down first: fuseunion umount '{record.merged}'"
    if record.phase in (Phase.COLLECTING, Phase.COLLECTED):
        raise UserError(
            f"the ranch at '{record.merged}' was interrupted while it was taken down; finish it with: "
            f"fuseunion doctor --repair '{record.upper or record.merged}'",
            ExitCode.BUSY,
        )
    if same != record:
        raise UserError(f"there is another ranch here, at '{record.merged}'; {how}", ExitCode.BUSY)
    if record.phase is Phase.LIVE and (record.mode is Mode.PLAIN or aside.is_mounted(ranch)):
        raise UserError(f"'{record.merged}' is a ranch already; {how}", ExitCode.BUSY)
    if record.phase is Phase.BUILDING:
        making.finish_build(ranch, report)
    if ranch.record.mode is Mode.MOUNTED:
        aside.put(ranch)
        aside.mount_farm(ranch)


def _check_target(asked: Record) -> None:
    if asked.upper is None and os.path.dirname(asked.merged) == asked.merged:
        raise UserError("an ephemeral ranch cannot stand at '/'; use another directory", ExitCode.LAYERS)
    if asked.upper is not None and os.path.commonpath((asked.upper, asked.merged)) == asked.merged:
        raise UserError(
            f"upper directory '{asked.upper}' would be hidden by the ranch at '{asked.merged}'; use another MERGED",
            ExitCode.LAYERS,
        )


# -- collecting ------------------------------------------------------------------------------------------------------


def sync(ranch: Ranch, report: Report) -> None:
    """Bring the changes into UPPER; the ranch stays.

    Args:
        report: told after each object how many were looked at.

    Raises:
        UserError: LAYERS for a ranch that has no UPPER, or is not complete, and for what cannot be collected.
        OSError: ENOSPC and the like; what was collected stays collected.
    """
    if ranch.record.upper is None:
        raise UserError(f"the ranch at '{ranch.record.merged}' is ephemeral: it has no UPPER", ExitCode.LAYERS)
    if ranch.record.phase is not Phase.LIVE:
        raise UserError(
            f"the ranch at '{ranch.record.merged}' is not complete; finish with: "
            f"fuseunion doctor --repair '{ranch.record.upper}'",
            ExitCode.LAYERS,
        )
    _collect(ranch, keep=True, report=report)


def take_down(ranch: Ranch, report: Report, *, discard: bool = False, lazy: bool = False) -> None:
    """Bring the changes into UPPER, or throw them away, and remove the ranch.

    Args:
        discard: throw them away.
        lazy: take the farm away from MERGED though it is in use (umount2(2), MNT_DETACH).
        report: told after each object how many were looked at.

    Raises:
        UserError: what cannot be collected, by name; the ranch is then still there.
        OSError: EBUSY while the farm is in use; ENOSPC and the like, after which the call can be repeated.
    """
    # A farm that was to be mounted was never shown to anybody before it was complete.
    unseen = ranch.record.phase is Phase.BUILDING and ranch.record.mode is Mode.MOUNTED
    discard = discard or unseen or ranch.record.upper is None
    if ranch.record.phase is Phase.BUILDING and not discard:
        making.finish_build(ranch, report)
    mounted = aside.is_mounted(ranch)
    if mounted:
        aside.unmount_farm(ranch, lazy=lazy)
    if ranch.record.phase is not Phase.COLLECTED:
        if not discard:
            ranch.enter(Phase.COLLECTING)
            try:
                _collect(ranch, keep=False, report=report)
            except UserError:
                # Something in the ranch is in the way: the user has to get at it.
                ranch.enter(Phase.LIVE)
                if mounted:
                    aside.mount_farm(ranch)
                raise
        ranch.enter(Phase.COLLECTED)
    making.remove(ranch)


def _collect(ranch: Ranch, *, keep: bool, report: Report) -> None:
    with viewed(ranch) as view, opened_farm(ranch) as farm:
        refuse_other_farm(ranch, farm)
        Collector(
            view.union,
            farm.root,
            view.links,
            view.layers,
            Ledger(ranch.inside, farm.root),
            injected={os.fsencode(path): os.fsencode(text) for path, text in ranch.record.injected},
            merged=view.merged,
            owners=known_owners(ranch.record),
            keep=keep,
            report=report,
        ).collect()
        if not ranch.record.volatile:
            # The farm is removed next, and with it the only other copy.
            syscalls.syncfs(view.layers[aside.UPPER].root_fd)
