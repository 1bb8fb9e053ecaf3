"""A run, read from its JSON: medians, spread, ratios.

A ratio is the median of fuseunion's fuse engine divided by that of another in the same run, of times and of bytes:
below 1 fuseunion is ahead. Whoever found something else than the others, or failed, has no median.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench.contestants import KNOWN
from bench.row import Unit

FORMAT = 1
OURS, NATIVE = "fuse", "overlayfs"


class Spread(NamedTuple):
    """What the samples of one contestant came to."""

    median: float
    least: float
    most: float


class Where(NamedTuple):
    """Under which circumstances."""

    medium: str
    player: str
    condition: str


@dataclass(frozen=True, slots=True)
class Line:
    """One part of one row under one set of circumstances.

    Attributes:
        values: the contestants that did it right.
        trouble: those that did not.
    """

    where: Where
    row: str
    label: str
    says: str
    unit: str
    values: dict[str, Spread]
    trouble: dict[str, str]
    rivals: frozenset[str]

    @property
    def best_rival(self) -> str | None:
        """The FUSE rival with the least median."""
        there = self.rivals & self.values.keys()
        return min(there, key=lambda name: (self.values[name].median, name)) if there else None

    def ratio(self, other: str | None) -> float | None:
        """Our median divided by another's; None where there is none, or where one is not above 0."""
        if other is None or OURS not in self.values or other not in self.values:
            return None
        ours, theirs = self.values[OURS].median, self.values[other].median
        return ours / theirs if ours > 0 and theirs > 0 else None


@dataclass(frozen=True, slots=True)
class Results:
    """A whole run.

    Attributes:
        raw: the JSON as it is: date, machine, versions, scale, rounds.
        not_run: what was left out and why, in words.
        failed: what failed, in words.
    """

    raw: dict[str, Any]
    lines: tuple[Line, ...]
    not_run: tuple[str, ...]
    failed: tuple[str, ...]

    @property
    def circumstances(self) -> list[Where]:
        """In the order in which they were measured."""
        return list(dict.fromkeys(line.where for line in self.lines))


def load(path: Path) -> Results:
    """Read the JSON of a run.

    Raises:
        ValueError: it is of another format.
    """
    return read(json.loads(path.read_text()))


def read(raw: dict[str, Any]) -> Results:
    """Understand the JSON of a run; see `load`."""
    if raw.get("format") != FORMAT:
        raise ValueError(f"format {raw.get('format')}, not {FORMAT}")
    peers = [text.partition("=")[0] for text in raw["peers"]]
    known = {contestant.name for contestant in KNOWN if contestant.rival}
    rivals = frozenset(known | {name for name in peers if not name.startswith("fuseunion")})
    lines = tuple(_line(result, rivals) for result in raw["results"])
    wrong = [f"{_about(line.where, line.label)}: {name}: {why}" for line in lines for name, why in line.trouble.items()]
    failed = [f"{_place(record)}: {record['contestant']}: {record['trouble']}" for record in raw["failed"]]
    # A contestant that failed in a later round is in both.
    return Results(raw, lines, _grouped(map(_omission, raw["not_run"])), _grouped([*failed, *wrong]))


def _grouped(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _line(result: dict[str, Any], rivals: frozenset[str]) -> Line:
    label = result["row"] + (f" {result['size']:,}" if result["several"] else "")
    label += f" {result['part']}" if result["part"] else ""
    values, trouble = {}, {}
    for name, record in result["contestants"].items():
        if record["trouble"] is not None:
            trouble[name] = record["trouble"]
        else:
            samples = record["samples"]
            values[name] = Spread(statistics.median(samples), min(samples), max(samples))
    where = Where(result["medium"], result["player"], result["condition"])
    return Line(where, result["row"], label, result["says"], result["unit"], values, trouble, rivals)


def _about(where: Where, label: str) -> str:
    return f"{', '.join(where)}: {label}"


def _place(record: dict[str, Any]) -> str:
    parts = [record.get("medium"), record.get("player"), record.get("condition")]
    label = " ".join(filter(None, [record.get("row"), f"{record['size']:,}" if record.get("size") else None]))
    return ": ".join(filter(None, [", ".join(filter(None, parts)), label]))


def _omission(record: dict[str, Any]) -> str:
    return ": ".join(filter(None, [_place(record), record.get("contestant"), record["why"]]))


def geometric_mean(ratios: Iterable[float | None]) -> float | None:
    """The mean of ratios; None of none."""
    logarithms = [math.log(ratio) for ratio in ratios if ratio is not None]
    return math.exp(statistics.fmean(logarithms)) if logarithms else None


def against_rivals(lines: Iterable[Line]) -> float | None:
    """The geometric mean of the times of lines, against the best FUSE rival of each."""
    return geometric_mean(line.ratio(line.best_rival) for line in lines if line.unit == Unit.SECONDS.value)


def against_native(lines: Iterable[Line]) -> float | None:
    """The geometric mean of the times of lines, against kernel overlayfs."""
    return geometric_mean(line.ratio(NATIVE) for line in lines if line.unit == Unit.SECONDS.value)
