"""Growth: the same with more of it, and who has to wait meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from bench.row import Measurement, row
from bench.rows.changing import OTHER
from bench.rows.mounting import several_lowers
from bench.rows.reading import one_directory
from bench.stage import Ground, Stage, Word


def empty_files(ground: Ground, size: int) -> None:
    """A lower with so many empty files, 100 in a directory."""
    ground.tree(ground.lower() / "tree", size, per_directory=100, size=0)


@row("find-growth", "find -ls over {size:,} files", tiny=200, small=(1_000, 10_000), full=(10_000, 100_000, 500_000),
     prepare=empty_files)  # fmt: skip
def find_growth(stage: Stage, size: int) -> Iterator[Measurement]:
    """Whether a file costs more where there are many."""
    yield stage.timed("cold", "find", stage.merged, "-ls")
    yield stage.timed("warm", "find", stage.merged, "-ls")


@row("directory-growth", "names of one directory of {size:,}", tiny=100, small=(1_000, 10_000),
     full=(1_000, 10_000, 100_000), prepare=one_directory)  # fmt: skip
def directory_growth(stage: Stage, size: int) -> Iterator[Measurement]:
    """As `ls -U` does."""
    yield from stage.looped(("cold", "warm"), "list", stage.merged / "tree/directory-0", 0, 2)


@row("lowers-growth", "{size} lowers: the names of a directory that all have, and 200 names that are missing there",
     tiny=3, small=(1, 50), full=(1, 10, 50, 100, 200), prepare=several_lowers)  # fmt: skip
def lowers_growth(stage: Stage, size: int) -> Iterator[Measurement]:
    """What each further layer costs."""
    yield from stage.looped(("ls",), "list", stage.merged / "shared", 1, 1)
    yield from stage.looped(("missing",), "missing", stage.merged / "shared", 200, 1)


def files_to_share(ground: Ground, size: int) -> None:
    """A lower with 2,000 small files."""
    ground.tree(ground.lower() / "tree", 2_000, size=1000)


@row("processes", "{size} processes share 2,000 files among them", tiny=2, small=(1, 4), full=(1, 2, 4, 8),
     prepare=files_to_share, changes=True)  # fmt: skip
def processes(stage: Stage, size: int) -> Iterator[Measurement]:
    """To open, read and close; to create, write and close."""
    yield from stage.looped(("read",), "together", "read", size, stage.merged / "tree", 2_000, 50)
    yield from stage.looped(("create",), "together", "create", size, stage.merged, 2_000, 50, after=stage.merged)


WORK: dict[str, Callable[[Path], list[Word]]] = {
    "mv": lambda merged: ["mv", merged / "mv", merged / "moved"],
    "rm -rf": lambda merged: ["rm", "-rf", merged / "rm -rf"],
    "chown -R": lambda merged: ["chown", "-R", f"{OTHER}:{OTHER}", merged / "chown -R"],
}


def trees_to_change(ground: Ground, size: int) -> None:
    """A lower with a tree of so many files for each kind of work, and a directory with nothing to do with it."""
    lower = ground.lower()
    (lower / "unrelated").mkdir()
    for name in WORK:
        ground.tree(lower / name, size, size=100)


@row("waits", "work on {size:,} files of the lower, and the longest wait of a stat of something else meanwhile",
     tiny=50, small=(100, 1_000), full=(100, 1_000, 10_000), prepare=trees_to_change, changes=True)  # fmt: skip
def waits(stage: Stage, size: int) -> Iterator[Measurement]:
    """Whether one user's large change stops the others."""
    for name, command in WORK.items():
        with stage.watched(stage.merged / "unrelated") as longest:
            done = stage.timed(name, *command(stage.merged), after=stage.merged)
        yield done
        yield Measurement(f"{name}, longest wait", longest[0])
