"""Changing: new trees, and what is done to a lower tree, which is then copied up or hidden."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

from bench.row import Measurement, row
from bench.rows.reading import small_files
from bench.stage import Ground, Stage

OTHER = 12
"""Some user and group that every namespace with subordinate ids has."""


def archive_beside(ground: Ground, size: int) -> None:
    """An almost empty lower, and a tar file of so many files beside it."""
    (ground.lower() / "there").mkdir()
    ground.tree(ground.kit / "tree", size)
    subprocess.run(["tar", "-C", ground.kit, "-cf", ground.kit / "tree.tar", "tree"], check=True)


@row("untar", "tar -x of {size:,} files of 1,000 bytes; rm -rf of them", tiny=100, small=2_000, full=10_000,
     prepare=archive_beside, changes=True)  # fmt: skip
def untar(stage: Stage, size: int) -> Iterator[Measurement]:
    """A tree in the upper comes and goes."""
    yield stage.timed("extract", "tar", "-C", stage.merged, "-xf", stage.kit / "tree.tar", after=stage.merged)
    yield stage.timed("remove", "rm", "-rf", stage.merged / "tree", after=stage.merged)


@row("remove", "rm -rf of {size:,} files of the lower", tiny=100, small=2_000, full=10_000, prepare=small_files,
     changes=True)  # fmt: skip
def remove(stage: Stage, size: int) -> Iterator[Measurement]:
    """A whiteout for the tree."""
    yield stage.timed("", "rm", "-rf", stage.merged / "tree", after=stage.merged)


@row("copy", "cp -a of {size:,} files of the lower", tiny=100, small=2_000, full=10_000, prepare=small_files,
     changes=True)  # fmt: skip
def copy(stage: Stage, size: int) -> Iterator[Measurement]:
    """Reading and creating by turns."""
    yield stage.timed("", "cp", "-a", stage.merged / "tree", stage.merged / "copy", after=stage.merged)


@row("chown", "chown -R of {size:,} files of the lower", tiny=100, small=2_000, full=20_000, prepare=small_files,
     changes=True)  # fmt: skip
def chown(stage: Stage, size: int) -> Iterator[Measurement]:
    """Each is copied up."""
    done = stage.timed("", "chown", "-R", f"{OTHER}:{OTHER}", stage.merged / "tree")
    yield done._replace(found=_how_many(stage, "-uid", str(OTHER), "-gid", str(OTHER)))


@row("chmod", "chmod -R of {size:,} files of the lower", tiny=100, small=2_000, full=20_000, prepare=small_files,
     changes=True)  # fmt: skip
def chmod(stage: Stage, size: int) -> Iterator[Measurement]:
    """Each is copied up."""
    done = stage.timed("", "chmod", "-R", "g+w", stage.merged / "tree")
    yield done._replace(found=_how_many(stage, "-perm", "-g+w"))


def _how_many(stage: Stage, *tests: str) -> str:
    [(_, lines)] = stage.tools.run("run", "find", stage.merged / "tree", *tests)
    return f"{lines} of them"


@row("move", "mv of a directory of {size:,} files of the lower", tiny=100, small=2_000, full=10_000,
     prepare=small_files, changes=True)  # fmt: skip
def move(stage: Stage, size: int) -> Iterator[Measurement]:
    """Where rename(2) answers EXDEV, mv copies and removes."""
    yield stage.timed("", "mv", stage.merged / "tree", stage.merged / "moved", after=stage.merged)


def one_large_file(ground: Ground, size: int) -> None:
    """A lower with a file of so many MiB."""
    ground.tools.run("write", ground.lower() / "file", size << 20, 1 << 20, "-")


@row("append", "a block of 4 KiB appended to a file of {size} MiB of the lower", tiny=2, small=64, full=1024,
     prepare=one_large_file, changes=True)  # fmt: skip
def append(stage: Stage, size: int) -> Iterator[Measurement]:
    """The copy-up of a large file."""
    yield from stage.looped(("",), "write", stage.merged / "file", 4096, 4096, "a", after=stage.merged / "file")
