"""A whole ranch: made, gone on with, collected, taken down.

Making:      record "building" -> layers aside -> build -> inject -> record "live" -> mount the farm
Taking down: unmount the farm -> record "collecting" -> collect, sync -> record "collected" -> remove all

Each arrow may be where the power fails. `create` goes on with a build and mounts a farm again that was lost with its
namespace; `take_down` goes on with everything else.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from fuseunion.core.disk.layer import Layer
from fuseunion.core.union import Union
from fuseunion.engines.engine import Report
from fuseunion.engines.ranch.collecting.collector import Collector
from fuseunion.engines.ranch.farm import aside, dismantle, inject
from fuseunion.engines.ranch.farm.builder import Builder
from fuseunion.engines.ranch.farm.guard import Guard
from fuseunion.engines.ranch.farm.targets import Links
from fuseunion.engines.ranch.record import marker
from fuseunion.engines.ranch.record.ledger import Ledger
from fuseunion.engines.ranch.record.owners import Owners
from fuseunion.engines.ranch.record.record import Mode, Phase, Ranch, Record, opened, read
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import syscalls
from fuseunion.mounting.assembly import build_union, open_layers
from fuseunion.mounting.checks.ranches import beside
from fuseunion.mounting.handover import stored_owners
from fuseunion.mounting.options import Options
from fuseunion.mounting.prepare import prepare
from fuseunion.mounting.prepared import Prepared

_log = logging.getLogger("fuseunion.ranch")


@dataclass(frozen=True, slots=True)
class View:
    """What a ranch shows, opened."""

    union: Union
    layers: dict[str, Layer]
    links: Links
    merged: tuple[int, int] | None


# -- making ----------------------------------------------------------------------------------------------------------


def create(options: Options, report: Report) -> None:
    """Make the ranch that the options ask for, or go on with one that was interrupted.

    Raises:
        UserError: LAYERS, BUSY, FAILURE; a ranch that was new has left nothing behind.
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
        prepared = prepare(_for_view(options, options.lowers), for_ranch=True) if read(state) is None else None
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
            return
        if prepared is None:
            raise UserError(f"the ranch in '{state}' was just taken down; try again", ExitCode.BUSY)
        _check_target(asked)
        asked = replace(asked, merged_mode=os.stat(merged).st_mode & 0o7777)
        try:
            ranch.write(asked)
            _put_aside(ranch)
        except BaseException:
            _forget(ranch)
            raise
        # From here on everything in MERGED is ours to remove.
        try:
            view = _view(prepared, options, ranch)
            stack.callback(view.union.close)
            _build(ranch, view, report)
        except BaseException:
            _remove(ranch)
            raise
        prepared.keep()
        if ranch.record.mode is Mode.MOUNTED:
            aside.mount_farm(ranch)


def _go_on(ranch: Ranch, asked: Record, report: Report) -> None:
    record = ranch.record
    same = replace(
        asked,
        phase=record.phase,
        mode=record.mode,
        injected=record.injected,
        merged_mode=record.merged_mode,
        owners=record.owners,
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
        _finish_build(ranch, report)
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


def _put_aside(ranch: Ranch) -> None:
    """Make the layers and the farm reachable, with mounts where they are allowed."""
    if ranch.record.mode is Mode.MOUNTED:
        try:
            aside.put(ranch)
            os.makedirs(ranch.farm, 0o700, exist_ok=True)
            return
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
                raise
            _log.info("no mounts here: %s", error)
        _remove_farm(ranch)
        aside.remove(ranch)
        _check_plain(ranch.record)
        ranch.write(replace(ranch.record, mode=Mode.PLAIN))
    aside.put(ranch)


def _check_plain(record: Record) -> None:
    """Refuse a MERGED that cannot itself become the tree of links."""
    layers = [*record.lowers, *([record.upper] if record.upper else [])]
    if any(os.path.samefile(record.merged, layer) for layer in layers):
        raise UserError(
            f"'{record.merged}' is a layer itself, and nothing can be mounted over it here; use another MERGED, or run "
            "in a user namespace: unshare --map-root-user --mount",
            ExitCode.LAYERS,
        )
    if os.listdir(record.merged):
        raise UserError(
            f"merged directory '{record.merged}' is not empty, and nothing can be mounted over it here; "
            "use an empty one",
            ExitCode.LAYERS,
        )
    if not os.access(record.merged, os.W_OK | os.X_OK):
        raise UserError(f"merged directory '{record.merged}' may not be written by you; use another", ExitCode.LAYERS)


def _build(ranch: Ranch, view: View, report: Report) -> None:
    record = ranch.record
    if record.mode is Mode.MOUNTED and not _is_layer(record, view):
        marker.put(record.merged, ranch.path)
    marker.put(ranch.farm, ranch.path)
    with _farm(ranch) as farm:
        inject.remove(record.injected, farm.root)
        builder(view, record, report).build(farm.root)
        inject.put(record.injected, farm.root)
    ranch.enter(Phase.LIVE)


def builder(view: View, record: Record, report: Report) -> Builder:
    """What builds the farm of a record."""
    assert record.owners is not None, "it was begun by this version"
    guard = Guard() if record.mode is Mode.PLAIN and not record.allow_writable_lower else None
    return Builder(
        view.union,
        view.links,
        depth=record.depth,
        copies=record.copies,
        guard=guard,
        merged=view.merged,
        owners=record.owners,
        report=report,
    )


def _is_layer(record: Record, view: View) -> bool:
    """Whether a mark in the directory beneath the farm would be a change of a layer."""
    return view.merged is not None or any(
        os.path.commonpath((record.merged, layer)) == layer
        for layer in (*record.lowers, *((record.upper,) if record.upper else ()))
    )


def _finish_build(ranch: Ranch, report: Report) -> None:
    ranch.write(replace(ranch.record, owners=Owners.mine()))
    _put_aside(ranch)
    with viewed(ranch) as view:
        _build(ranch, view, report)


# -- looking ---------------------------------------------------------------------------------------------------------


@contextmanager
def viewed(ranch: Ranch) -> Iterator[View]:
    """Open what a ranch that is there shows.

    Raises:
        UserError: a layer is missing, or in use by another mount.
    """
    record = ranch.record
    lowers = tuple(aside.source(ranch, str(number), path) for number, path in enumerate(record.lowers))
    options = Options(
        target=record.merged,
        lowers=lowers,
        upper=record.upper,
        work=record.work,
        ephemeral=record.upper is None,
        volatile=record.volatile,
    )
    prepared = prepare(_for_view(options, lowers), for_ranch=True)
    try:
        view = _view(prepared, options, ranch)
        try:
            yield view
        finally:
            view.union.close()
    finally:
        prepared.close()


def _for_view(options: Options, lowers: tuple[str, ...]) -> Options:
    """The options under which the directories are prepared: a ranch without an upper only looks at the lowers."""
    if options.upper is None:
        return options._replace(lowers=lowers, ephemeral=False, read_only=True)
    return options._replace(lowers=lowers)


def _view(prepared: Prepared, options: Options, ranch: Ranch) -> View:
    record = ranch.record
    hidden = any(opened.covered for opened in prepared.lowers) and record.mode is Mode.PLAIN
    merged = os.stat(record.merged)
    layers = open_layers(prepared, options)
    labels = {str(number): layer for number, layer in enumerate(layers.lowers)}
    if layers.upper is not None:
        labels[aside.UPPER] = layers.upper
    union = build_union(layers, options, posix_acl=False, owner_optional=True)
    links = Links(ranch.path, record.merged, record.links, {layer: (label, b"") for label, layer in labels.items()})
    return View(union, labels, links, (merged.st_dev, merged.st_ino) if hidden else None)


@contextmanager
def _farm(ranch: Ranch) -> Iterator[Layer]:
    layer = Layer(os.open(ranch.farm, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), writable=True, label=ranch.farm)
    try:
        yield layer
    finally:
        layer.close()


def known_owners(record: Record) -> Owners | None:
    """Who made a farm, if this process can tell."""
    return record.owners if record.owners is not None and record.owners.comparable else None


# -- collecting ------------------------------------------------------------------------------------------------------


def sync(ranch: Ranch, report: Report) -> None:
    """Bring the changes into UPPER; the ranch stays.

    Raises:
        UserError: LAYERS for a ranch that has no UPPER, or is not complete.
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


def take_down(ranch: Ranch, *, discard: bool = False, lazy: bool = False, report: Report) -> None:
    """Bring the changes into UPPER, or throw them away, and remove the ranch.

    Raises:
        UserError: what cannot be collected, by name; the ranch is then still there.
        OSError: EBUSY while the farm is in use.
    """
    # A farm that was to be mounted was never shown to anybody before it was complete.
    unseen = ranch.record.phase is Phase.BUILDING and ranch.record.mode is Mode.MOUNTED
    discard = discard or unseen or ranch.record.upper is None
    if ranch.record.phase is Phase.BUILDING and not discard:
        _finish_build(ranch, report)
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
    _remove(ranch)


def _collect(ranch: Ranch, *, keep: bool, report: Report) -> None:
    with viewed(ranch) as view, _farm(ranch) as farm:
        Collector(
            view.union,
            farm.root,
            view.links,
            view.layers,
            Ledger(ranch.path, farm.root),
            injected={os.fsencode(path): os.fsencode(text) for path, text in ranch.record.injected},
            merged=view.merged,
            owners=known_owners(ranch.record),
            keep=keep,
            report=report,
        ).collect()
        if not ranch.record.volatile:
            # The farm is removed next, and with it the only other copy.
            syscalls.syncfs(view.layers[aside.UPPER].root_fd)


def _remove(ranch: Ranch) -> None:
    """Remove farm, marks, mounts and state; what is gone already is passed over."""
    record = ranch.record
    if record.mode is Mode.PLAIN:
        dismantle.empty(record.merged)
        os.chmod(record.merged, record.merged_mode)
    _forget(ranch)


def _forget(ranch: Ranch) -> None:
    """Remove marks, mounts and state, not what is in MERGED."""
    record = ranch.record
    if record.mode is Mode.MOUNTED:
        _remove_farm(ranch)
        if marker.find(record.merged) == ranch.path:
            marker.remove(record.merged)
    aside.remove(ranch)
    ranch.remove()


def _remove_farm(ranch: Ranch) -> None:
    if os.path.isdir(ranch.farm):
        dismantle.empty(ranch.farm)
        os.rmdir(ranch.farm)
