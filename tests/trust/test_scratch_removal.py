"""The directory of an ephemeral mount goes without any link being followed, however deep it is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fuseunion.mounting.sources import scratch
from tests.support.arena import Arena
from tests.trust.hostile import UID, land

pytestmark = [pytest.mark.root, pytest.mark.actors("root")]

DEPTH = 3_000
"""Beyond Python's recursion limit, and with the paths beyond PATH_MAX."""


@pytest.fixture
def parent(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where directories are made, as where no private tmpfs can be had."""

    def refuse(size: str | None) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(scratch, "_tmpfs", refuse)
    monkeypatch.setattr(scratch, "_tmpfs_from_namespace", refuse)
    parent = arena.directory("scratch")
    monkeypatch.setattr(scratch, "_parents", lambda: [str(parent)])
    return parent


def test_links_to_directories_are_not_followed(arena: Arena, parent: Path) -> None:
    there = land(arena)
    made = scratch.make(None)
    path = Path(made.label)
    (path / "upper").mkdir()
    (path / "upper/link").symlink_to(there.treasure)
    (path / "link").symlink_to(there.treasure / "work")
    made.remove()
    there.check()
    assert os.listdir(parent) == []


def test_any_depth(arena: Arena, parent: Path) -> None:
    made = scratch.make(None)
    fd = os.dup(made.root_fd)
    for number in range(DEPTH):
        os.mkdir("d", 0o300 if number % 100 == 0 else 0o700, dir_fd=fd)
        below = os.open("d", os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    made.remove()
    assert os.listdir(parent) == []


def test_what_others_left_is_not_swept_and_hinders_nothing(arena: Arena, parent: Path) -> None:
    there = land(arena)
    name = f"fuseunion-{os.geteuid()}-"
    (parent / f"{name}link").symlink_to(there.treasure)
    (parent / f"{name}file").touch()
    os.mkfifo(parent / f"{name}fifo")
    (parent / f"{name}other").mkdir()
    os.chown(parent / f"{name}other", UID, UID)
    (parent / f"{name}zleft/inner").mkdir(parents=True)
    made = scratch.make(None)
    left = {path.name.removeprefix(name) for path in parent.iterdir()} - {Path(made.label).name.removeprefix(name)}
    assert left == {"link", "file", "fifo", "other"}
    made.remove()
    there.check()
