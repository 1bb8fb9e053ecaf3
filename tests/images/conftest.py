"""Images for the tests, and the check that no program that shows one is left."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.exec.stage import Stage
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.interpreter import Interpreter


def squashfs(tree: Path, file: Path, *more: str) -> Path:
    """A squashfs image of a tree."""
    command = ["mksquashfs", str(tree), str(file), "-quiet", "-no-progress", *more]
    subprocess.run(command, check=True, capture_output=True)
    return file


def ext(file: Path, *, size: str = "16M", tree: Path | None = None, kind: str = "ext4") -> Path:
    """An ext image; without a tree one with an empty `upper` and `work`, as Apptainer makes it."""
    if tree is None:
        tree = file.with_name(file.name + ".tree")
        (tree / "upper").mkdir(parents=True)
        (tree / "work").mkdir()
    subprocess.run(["truncate", "-s", size, str(file)], check=True)
    subprocess.run(["mkfs." + kind, "-q", "-F", "-d", str(tree), str(file)], check=True, capture_output=True, text=True)
    return file


def fsck(file: Path) -> None:
    """The filesystem in an image is clean and was unmounted."""
    done = subprocess.run(["e2fsck", "-fn", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = subprocess.run(["dumpe2fs", "-h", str(file)], capture_output=True, text=True, check=True).stdout
    state = next(line.split(":")[1].strip() for line in said.splitlines() if line.startswith("Filesystem state"))
    assert state == "clean", state


def repair(file: Path) -> None:
    """As e2fsck -fp or, where that asks, -fy leaves it; the errors must be those that can be repaired."""
    done = subprocess.run(["e2fsck", "-fy", str(file)], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    fsck(file)


def names(file: Path, directory: str = "/upper") -> set[str]:
    """What is in a directory of an ext image, looked at without mounting it."""
    said = subprocess.run(
        ["debugfs", "-R", f"ls -p {directory}", str(file)], capture_output=True, text=True, check=True
    ).stdout
    found = {line.split("/")[5] for line in said.splitlines() if line.count("/") >= 7}
    return found - {".", "..", ""}


def content(file: Path, path: str) -> bytes:
    """A file of an ext image, read without mounting it."""
    return subprocess.run(["debugfs", "-R", f"cat {path}", str(file)], capture_output=True, check=True).stdout


@pytest.fixture
def stage(arena: Arena, reachable_interpreter: Interpreter) -> Stage:
    """Commands as the actor."""
    found = arena.place.interpreter if arena.actor.role is Role.ROOT else reachable_interpreter
    return Stage(arena, found)
