"""Mounting: a container engine does it for every step of a build."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

from bench.row import Measurement, Who, row
from bench.stage import Ground, Stage

REPEATED = 5
"""Mounts in one sample, since one is short."""


def one_small_tree(ground: Ground, size: int) -> None:
    """A lower with a few files."""
    ground.tree(ground.lower() / "tree", size)


@row(
    "mount",
    "mount until the first stat is answered, and unmount until the daemon has gone",
    tiny=10,
    small=10,
    full=10,
    prepare=one_small_tree,
    mounted=False,
    who=Who.MOUNTS,
)
def mount(stage: Stage, size: int) -> Iterator[Measurement]:
    """Up and down several times."""
    for _ in range(REPEATED):
        yield Measurement("mount", stage.mount())
        yield Measurement("unmount", stage.unmount())


def tree_with_a_shell(ground: Ground, size: int) -> None:
    """A lower with so many files, and with a shell and the libraries that it needs."""
    lower = ground.lower()
    ground.tree(lower / "tree", size)
    needed = subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True).stdout.split()
    for path in ["/bin/sh", *(word for word in needed if word.startswith("/"))]:
        (lower / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, lower / path[1:])


@row(
    "exec",
    "a shell in the tree until it says something: exec, for the others unshare, mount and chroot",
    tiny=10,
    small=10,
    full=10,
    prepare=tree_with_a_shell,
    mounted=False,
    who=Who.MOUNTS,
    programs=("unshare", "chroot"),
)
def enter(stage: Stage, size: int) -> Iterator[Measurement]:
    """From the start of the first program to the prompt."""
    yield Measurement("", stage.enter("/bin/sh", "-c", "echo ready"))


def several_lowers(ground: Ground, size: int) -> None:
    """So many lowers, each with some files of its own in a directory that all have."""
    for number in range(size):
        lower = ground.lower()
        (lower / "shared").mkdir()
        for name in range(10):
            (lower / "shared" / f"{number}-{name}").write_text("x")
        ground.tree(lower / f"own-{number}", 20, per_directory=10, size=100)


@row(
    "lowers",
    "{size} lowers: mount, find",
    tiny=2,
    small=(1, 10),
    full=(1, 10, 50),
    prepare=several_lowers,
    mounted=False,
)
def lowers(stage: Stage, size: int) -> Iterator[Measurement]:
    """What a deep stack of layers costs."""
    seconds = stage.mount()
    if stage.contestant.mounts is not None:
        yield Measurement("mount", seconds)
    yield stage.timed("find cold", "find", stage.merged, "-ls")
    yield stage.timed("find warm", "find", stage.merged, "-ls")
