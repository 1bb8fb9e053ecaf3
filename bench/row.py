"""What a row is: how its lower is made, what is measured, at which sizes.

    @row("find", "find -ls over {size:,} files", tiny=200, small=3_000, full=18_000, prepare=tree_of_small_files)
    def find(stage: Stage, size: int) -> Iterator[Measurement]:
        yield stage.timed("cold", "find", stage.merged, "-ls")

A row yields a measurement for each of its parts; a part that is yielded again is another sample of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bench.stage import Ground, Stage


class Scale(Enum):
    """How large everything is: for the test of the benchmark, for minutes, for hours."""

    TINY = "tiny"
    SMALL = "small"
    FULL = "full"


class Unit(Enum):
    """What a value is; less is always better."""

    SECONDS = "s"
    BYTES = "bytes"
    DESCRIPTORS = "descriptors"


class Measurement(NamedTuple):
    """One sample.

    Attributes:
        part: which of the row's parts, "" when there is only one.
        value: in the unit.
        found: what was done, the same for all contestants; None where nothing can be counted.
    """

    part: str
    value: float
    found: str | None = None
    unit: Unit = Unit.SECONDS


class NotRun(Exception):  # noqa: N818 - nothing went wrong
    """The row, or one of its parts, cannot be run here; the text says why."""


class Failed(Exception):  # noqa: N818 - reads as what happened
    """The contestant could not do what the row asked for; the text says how it ended."""


class Who(Enum):
    """Which contestants a row is for."""

    ALL = "all"
    MOUNTS = "whoever is mounted"
    DAEMONS = "whoever has a daemon"
    PROGRAMS = "whoever can be podman's storage: a mount program, or the kernel"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the benchmark; see the module.

    Attributes:
        says: what is done, with {size}.
        sizes: for each scale; a row with several sizes shows growth.
        prepare: makes the lowers, and what the row needs beside them.
        changes: whether the tree is changed: the bare directory is then a copy, else the lower itself.
        mounted: whether the stage is mounted before the row begins.
        programs: what must be installed.
    """

    name: str
    says: str
    theme: str
    sizes: Mapping[Scale, tuple[int, ...]]
    prepare: Callable[[Ground, int], None]
    measure: Callable[[Stage, int], Iterator[Measurement]]
    changes: bool
    mounted: bool
    who: Who
    programs: tuple[str, ...]


ROWS: dict[str, Row] = {}
"""All rows by name, in the order of the table; filled by importing `bench.rows`."""

Sizes = int | tuple[int, ...]
Body = Callable[["Stage", int], Iterator[Measurement]]


def _several(sizes: Sizes) -> tuple[int, ...]:
    return sizes if isinstance(sizes, tuple) else (sizes,)


def row(
    name: str,
    says: str,
    *,
    tiny: Sizes,
    small: Sizes,
    full: Sizes,
    prepare: Callable[[Ground, int], None],
    changes: bool = False,
    mounted: bool = True,
    who: Who = Who.ALL,
    programs: tuple[str, ...] = (),
) -> Callable[[Body], Body]:
    """Make a row of a function; see `Row`."""

    def enter(measure: Body) -> Body:
        assert name not in ROWS, name
        sizes = {Scale.TINY: _several(tiny), Scale.SMALL: _several(small), Scale.FULL: _several(full)}
        theme = measure.__module__.rpartition(".")[2]
        ROWS[name] = Row(name, says, theme, sizes, prepare, measure, changes, mounted, who, programs)
        return measure

    return enter
