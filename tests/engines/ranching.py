"""Making a ranch in the way that the actor has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.engines.shown import run
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.layers import File, Name, Node, Symlink

LOWER: dict[Name, Node] = {
    "one": File(b"1", mode=0o640),
    "dir/two": File(b"2"),
    "dir/sub/three": File(b"3", xattrs={"user.mine": b"value"}),
    "dir/sub/link": Symlink(target="three"),
    "other/four": File(b"4"),
}

everybody = pytest.mark.actors("root", "userns", "denied")
with_mounts = pytest.mark.actors("root", "userns")


def ranch(arena: Arena, *arguments: str | Path) -> Path:
    """Make a ranch of one lower in the way that the actor has; returns MERGED."""
    merged = arena.directory("merged")
    safe = ["--copy", "*"] if arena.actor.role is Role.DENIED and "--allow-writable-lower" not in arguments else []
    run(arena, "--engine", "ranch", *safe, *arguments, arena.upper, merged)
    return merged


def is_link(path: Path) -> bool:
    """Whether a path is a link of a ranch."""
    return path.is_symlink() and ".fuseunion-ranch/lower/" in os.readlink(path)
