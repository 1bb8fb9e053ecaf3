"""Reading: what is asked for the first time (a fresh mount), and again."""

from __future__ import annotations

from collections.abc import Iterator

from bench.row import Measurement, row
from bench.stage import Ground, Stage

PASSES = ("cold", "second", "third")


def small_files(ground: Ground, size: int) -> None:
    """A lower with so many files of 1,000 bytes, 50 in a directory."""
    ground.tree(ground.lower() / "tree", size)


@row("find", "find -ls over {size:,} files", tiny=200, small=5_000, full=18_000, prepare=small_files)
def find(stage: Stage, size: int) -> Iterator[Measurement]:
    """Names and attributes."""
    for part in PASSES:
        yield stage.timed(part, "find", stage.merged, "-ls")


@row("du", "du -a over {size:,} files", tiny=200, small=5_000, full=18_000, prepare=small_files)
def du(stage: Stage, size: int) -> Iterator[Measurement]:
    """Sizes."""
    for part in PASSES[:2]:
        yield stage.timed(part, "du", "-a", stage.merged)


@row("grep", "grep -r over {size:,} files of 1,000 bytes", tiny=200, small=3_000, full=8_900, prepare=small_files)
def grep(stage: Stage, size: int) -> Iterator[Measurement]:
    """Contents."""
    for part in PASSES:
        yield stage.timed(part, "grep", "-r", "needle", stage.merged)


@row("missing", "{size:,} stats of names that are not there", tiny=100, small=5_000, full=20_000, prepare=small_files)
def missing(stage: Stage, size: int) -> Iterator[Measurement]:
    """As a shell or a compiler does while it searches; and the same names again."""
    yield from stage.looped(("first", "again"), "missing", stage.merged / "tree", size, 2)


def thousand_files(ground: Ground, size: int) -> None:
    """A lower with 1,000 files, or fewer."""
    ground.tree(ground.lower() / "tree", min(size, 1000))


@row("open", "{size:,} times open and close, of 1,000 files", tiny=100, small=10_000, full=20_000,
     prepare=thousand_files)  # fmt: skip
def opens(stage: Stage, size: int) -> Iterator[Measurement]:
    """Nothing is read."""
    yield from stage.looped(("",), "opens", stage.merged / "tree", min(size, 1000), 50, size)


def one_directory(ground: Ground, size: int) -> None:
    """A lower with one directory of so many empty files."""
    ground.tree(ground.lower() / "tree", size, per_directory=size, size=0)


@row("directory", "listing and stat of one directory of {size:,}", tiny=300, small=10_000, full=50_000,
     prepare=one_directory)  # fmt: skip
def directory(stage: Stage, size: int) -> Iterator[Measurement]:
    """As `ls -l` does."""
    yield from stage.looped(PASSES[:2], "list", stage.merged / "tree/directory-0", 1, 2)
