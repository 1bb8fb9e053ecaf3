"""The parts of a ranch put in place, and taken away again: the layers aside, the farm, the marks, the record.

What is done already is passed over, so that each call can be repeated after a crash.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import replace

from fuseunion.core.disk import trees
from fuseunion.engines.ranch.farm import aside, inject
from fuseunion.engines.ranch.farm.builder import Builder
from fuseunion.engines.ranch.farm.guard import Guard
from fuseunion.engines.ranch.record import marker
from fuseunion.engines.ranch.record.owners import Owners
from fuseunion.engines.ranch.record.record import FARM, Mode, Phase, Ranch, Record
from fuseunion.engines.ranch.view import View, as_layer, opened_farm, refuse_other_farm, viewed
from fuseunion.errors import ExitCode, UserError

_log = logging.getLogger("fuseunion.ranch")


# -- putting ---------------------------------------------------------------------------------------------------------


def put_aside(ranch: Ranch) -> None:
    """Make the layers and the farm reachable, with mounts where they are allowed.

    Raises:
        UserError: LAYERS, for a MERGED that cannot become a ranch without mounts.
        OSError: of mount(2), symlink(2) and the record.
    """
    if ranch.record.mode is Mode.MOUNTED:
        try:
            aside.put(ranch)
            (ranch.inside / FARM).mkdir(0o700, exist_ok=True)
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


def build(ranch: Ranch, view: View, report: Callable[[int], None]) -> None:
    """Make the tree of links, with the marks that lead to the ranch, and what --inject asks for.

    Raises:
        UserError: LAYERS for what the user could change through a link, or what is in the way.
        OSError: of the layers and the farm's filesystem.
    """
    record = ranch.record
    if record.mode is Mode.MOUNTED and not _is_layer(record, view):
        with as_layer(ranch.open_merged(), record.merged) as merged:
            marker.put(merged.root_fd, ranch.path)
    with opened_farm(ranch) as farm:
        refuse_other_farm(ranch, farm, may_be_empty=True)
        marker.put(farm.root_fd, ranch.path)
        inject.remove(record.injected, farm.root)
        _builder(view, record, report).build(farm.root)
        inject.put(record.injected, farm.root)
    ranch.enter(Phase.LIVE)


def _builder(view: View, record: Record, report: Callable[[int], None]) -> Builder:
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


def finish_build(ranch: Ranch, report: Callable[[int], None]) -> None:
    """Go on with a build that was interrupted.

    Raises:
        UserError: as `put_aside`, `viewed` and `build`.
    """
    ranch.write(replace(ranch.record, owners=Owners.mine()))
    put_aside(ranch)
    with viewed(ranch) as view:
        build(ranch, view, report)


# -- taking away -----------------------------------------------------------------------------------------------------


def remove(ranch: Ranch) -> None:
    """Remove farm, marks, mounts and state; what is gone already is passed over.

    Raises:
        UserError: LAYERS; MERGED is not the directory that the ranch was made in.
        OSError: EXDEV where something is mounted in the farm; of umount2(2) and unlink(2).
    """
    if ranch.record.mode is Mode.PLAIN:
        _empty(ranch, ranch.record.merged_mode)
    forget(ranch)


def forget(ranch: Ranch) -> None:
    """Remove marks, mounts and state, not what is in MERGED. Raises as `remove`."""
    record = ranch.record
    if record.mode is Mode.MOUNTED:
        _remove_farm(ranch)
        try:
            merged = ranch.open_merged()
        except OSError as error:
            _log.warning("'%s' is not there any more: %s", record.merged, error.strerror)
        else:
            try:
                if marker.find(merged) == ranch.path:
                    marker.remove(merged)
            finally:
                os.close(merged)
    aside.remove(ranch)
    ranch.remove()


def _remove_farm(ranch: Ranch) -> None:
    if os.path.isdir(ranch.inside / FARM):
        _empty(ranch)
        os.rmdir(FARM, dir_fd=ranch.fd)


def _empty(ranch: Ranch, mode: int | None = None) -> None:
    """Remove everything in a farm, not its directory; the mark goes last, because without it nobody finds the rest.

    Args:
        mode: to give the directory then.

    Raises:
        UserError: LAYERS; something else has its place.
    """
    with opened_farm(ranch) as layer:
        refuse_other_farm(ranch, layer, may_be_empty=True)
        trees.empty(layer.root, keep=(marker.NAME,))
        marker.remove(layer.root_fd)
        if mode is not None:
            os.fchmod(layer.root_fd, mode)
