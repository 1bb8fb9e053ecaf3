"""Data: blocks in order and at random, with and without fsync, through read and write and through a mapping."""

from __future__ import annotations

from collections.abc import Iterator

from bench.row import Measurement, row
from bench.stage import Ground, Stage

KIB, MIB = 1 << 10, 1 << 20


def two_files(ground: Ground, size: int) -> None:
    """A lower with two files of so many MiB."""
    lower = ground.lower()
    for name in ("one", "other"):
        ground.tools.run("write", lower / name, size * MIB, MIB, "-")


@row("read", "{size} MiB of the lower in blocks", tiny=1, small=32, full=256, prepare=two_files)
def read(stage: Stage, size: int) -> Iterator[Measurement]:
    """In order, each file for the first time and again."""
    yield from stage.looped(("4 KiB", "4 KiB again"), "read", stage.merged / "one", 4 * KIB, 2)
    yield from stage.looped(("1 MiB", "1 MiB again"), "read", stage.merged / "other", MIB, 2)


def small_lower(ground: Ground, size: int) -> None:
    """A lower with one small file."""
    (ground.lower() / "there").write_text("x")


@row("write", "a new file of {size} MiB in blocks", tiny=1, small=32, full=256, prepare=small_lower, changes=True)
def write(stage: Stage, size: int) -> Iterator[Measurement]:
    """In order, until close; and until fsync."""
    for part, block, flags in (("4 KiB", 4 * KIB, "-"), ("1 MiB", MIB, "-"), ("1 MiB, fsync", MIB, "s")):
        yield from stage.looped(
            (part,), "write", stage.merged / part, size * MIB, block, flags, after=stage.merged / part
        )


@row("random-read", "4 KiB at random places of a file of {size} MiB, a quarter as many times as there are",
     tiny=1, small=32, full=256, prepare=two_files)  # fmt: skip
def random_read(stage: Stage, size: int) -> Iterator[Measurement]:
    """Of the lower."""
    yield from stage.looped(("",), "random", stage.merged / "one", size * MIB, size * 64, "read")


@row("random-write", "4 KiB at random places of a file of {size} MiB", tiny=1, small=32, full=256,
     prepare=small_lower, changes=True)  # fmt: skip
def random_write(stage: Stage, size: int) -> Iterator[Measurement]:
    """A quarter as many times as there are places; with fdatasync after each a sixteenth of that."""
    file = stage.merged / "file"
    stage.tools.run("write", file, size * MIB, MIB, "s")
    yield from stage.looped(("no fsync",), "random", file, size * MIB, size * 64, "write")
    yield from stage.looped(("fsync",), "random", file, size * MIB, size * 4, "sync", after=file)


@row("mmap", "a byte written to each page of a mapping of {size} MiB, and msync", tiny=1, small=32, full=256,
     prepare=small_lower, changes=True)  # fmt: skip
def mmap(stage: Stage, size: int) -> Iterator[Measurement]:
    """Of a file in the upper."""
    file = stage.merged / "file"
    stage.tools.run("write", file, size * MIB, MIB, "s")
    yield from stage.looped(("",), "map", file, size * MIB, after=file)
