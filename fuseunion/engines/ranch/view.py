"""What a ranch shows, opened: the union of its layers, as the links aside lead to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fuseunion.core.disk.layer import Layer
from fuseunion.core.union import Union
from fuseunion.engines.ranch.farm import aside
from fuseunion.engines.ranch.farm.targets import Links
from fuseunion.engines.ranch.record import marker
from fuseunion.engines.ranch.record.owners import Owners
from fuseunion.engines.ranch.record.record import Mode, Ranch, Record
from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting.assembly import build_union, open_layers
from fuseunion.mounting.options import Options
from fuseunion.mounting.prepare import prepare
from fuseunion.mounting.prepared import Prepared


@dataclass(frozen=True, slots=True)
class View:
    """What a ranch shows, opened.

    Attributes:
        union: what the farm was made after, and what is collected into.
        layers: by the label that links use.
        links: writes and reads the links of the ranch.
        merged: identity of MERGED where it lies inside a lower, and the farm in MERGED.
    """

    union: Union
    layers: dict[str, Layer]
    links: Links
    merged: tuple[int, int] | None


@contextmanager
def viewed(ranch: Ranch) -> Iterator[View]:
    """Open what a ranch that is there shows.

    Raises:
        UserError: a layer is missing, or in use by another mount.
    """
    record = ranch.record
    ranch.refuse_exchanged()
    lowers = tuple(aside.source(ranch, str(number), path) for number, path in enumerate(record.lowers))
    # Aside, without mounts, is a link to the layer.
    for path, known in (*zip(lowers, record.lowers, strict=True), (record.upper, None), (record.work, None)):
        if path is not None and os.path.realpath(path) not in (path, known):
            # What would be written to was not what the user named.
            raise UserError(f"'{path}' of the ranch at '{record.merged}' is a link now; put it back", ExitCode.LAYERS)
    options = Options(
        target=record.merged,
        lowers=lowers,
        upper=record.upper,
        work=record.work,
        ephemeral=record.upper is None,
        volatile=record.volatile,
    )
    prepared = prepare(for_view(options, lowers), for_ranch=True)
    try:
        if prepared.upper is not None:
            ranch.refuse_other_upper(prepared.upper.fd)
        view = opened_view(prepared, options, ranch)
        try:
            yield view
        finally:
            view.union.close()
    finally:
        prepared.close()


def for_view(options: Options, lowers: tuple[str, ...]) -> Options:
    """The options under which the directories are prepared: a ranch without an upper only looks at the lowers."""
    if options.upper is None:
        return options._replace(lowers=lowers, ephemeral=False, read_only=True)
    return options._replace(lowers=lowers)


def opened_view(prepared: Prepared, options: Options, ranch: Ranch) -> View:
    """What a ranch shows, of directories that are prepared already; the caller closes its union.

    Raises:
        UserError: LAYERS, when the upper's filesystem cannot serve.
        OSError: a layer cannot be read.
    """
    record = ranch.record
    hidden = any(opened.covered for opened in prepared.lowers) and record.mode is Mode.PLAIN
    merged = os.stat(record.merged)
    layers = open_layers(prepared, options)
    if prepared.full is not None:
        for layer in layers.lowers:
            layer.close()
        raise UserError(f"upper '{record.upper}' is on a full filesystem; make space first", ExitCode.LAYERS)
    labels = {str(number): layer for number, layer in enumerate(layers.lowers)}
    if layers.upper is not None:
        labels[aside.UPPER] = layers.upper
    union = build_union(layers, options, posix_acl=False, owner_optional=True)
    links = Links(ranch.path, record.merged, record.links, {layer: (label, b"") for label, layer in labels.items()})
    return View(union, labels, links, (merged.st_dev, merged.st_ino) if hidden else None)


@contextmanager
def opened_farm(ranch: Ranch) -> Iterator[Layer]:
    """The tree of links, as a layer that may be written.

    Raises:
        OSError: it is not there, or may not be read; ELOOP where a link has its place.
    """
    with as_layer(ranch.open_farm(), ranch.farm) as layer:
        yield layer


def refuse_other_farm(ranch: Ranch, farm: Layer, *, may_be_empty: bool = False) -> None:
    """Refuse a MERGED that was put in the place of the farm: it lacks the mark that leads to the ranch.

    Else a directory that has nothing to do with the ranch would be emptied, or collected.

    Args:
        may_be_empty: the mark is not there before the first object of the farm, nor after the last.

    Raises:
        UserError: LAYERS.
    """
    if ranch.record.mode is Mode.MOUNTED or marker.find(farm.root_fd) == ranch.path:
        return
    if not may_be_empty or os.listdir(farm.root_fd):
        raise UserError(
            f"'{ranch.farm}' is not the directory that the ranch was made in; put that back, or move '{ranch.path}' "
            "away to give the ranch up",
            ExitCode.LAYERS,
        )


@contextmanager
def as_layer(fd: int, label: str) -> Iterator[Layer]:
    """A directory as a layer that may be written, and that owns the descriptor."""
    layer = Layer(fd, writable=True, label=label)
    try:
        yield layer
    finally:
        layer.close()


def known_owners(record: Record) -> Owners | None:
    """Who made a farm, if this process can tell."""
    return record.owners if record.owners is not None and record.owners.comparable else None
