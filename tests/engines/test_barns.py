"""The example of docs/engines.md: a read-only barn of animals (files), and a new one, henry, put in beside them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.engines.shown import run
from tests.support.arena import Arena
from tests.support.layers import File, Name, Node

BARN: dict[Name, Node] = {"bessie": File(b"moo"), "clover": File(b"neigh"), "stall/babe": File(b"oink")}


@pytest.mark.actors("userns", "root")
def test_in_place(arena: Arena) -> None:
    """In a user namespace barn1 itself becomes the ranch; its animals stay where they were, read-only."""
    barn1, barn2 = arena.lower(BARN, "barn1"), arena.root / ".changes.fuseunion-ranch/lower/0"
    changes = arena.root / "changes"
    run(arena, "--engine", "ranch", barn1, changes, barn1)
    assert sorted(os.listdir(barn1)) == ["bessie", "clover", "stall"]
    assert os.path.realpath(barn1 / "bessie") == str(barn2 / "bessie")
    (barn1 / "henry").write_text("cluck")
    (barn1 / "stall/henry").write_text("cluck")
    with pytest.raises(OSError, match="Read-only file system"):
        (barn1 / "bessie").write_text("woof")
    (barn1 / "clover").unlink()
    assert sorted(os.listdir(barn1)) == ["bessie", "henry", "stall"]
    run(arena, "umount", barn1)
    assert sorted(os.listdir(barn1)) == ["bessie", "clover", "stall"]
    assert sorted(os.listdir(changes)) == ["clover", "henry", "stall"]
    assert (changes / "henry").read_text() == "cluck"
    assert os.lstat(changes / "clover").st_rdev == 0


def _read_only_barn(arena: Arena) -> Path:
    """A barn that the user cannot change: one of the system's."""
    for path in (Path("/usr/share/common-licenses"), Path("/usr/share/zoneinfo"), Path("/etc/init.d")):
        if path.is_dir():
            arena.guard(path)
            return path
    raise AssertionError("no directory of the system is suitable")


@pytest.mark.actors("denied", "user")
@pytest.mark.parametrize("links", ["absolute", "relative"])
def test_without_any_privilege(arena: Arena, links: str) -> None:
    """Any user makes a ranch, in barn2, of what that user may only read."""
    barn1, barn2, changes = _read_only_barn(arena), arena.directory("barn2"), arena.root / "changes"
    run(arena, "--engine", "ranch", "--links", links, barn1, changes, barn2)
    assert sorted(os.listdir(barn2)) == sorted(os.listdir(barn1))
    animal = min(path.name for path in barn1.iterdir() if path.is_file() and not path.is_symlink())
    assert (barn2 / animal).read_bytes() == (barn1 / animal).read_bytes()
    assert os.path.isabs(os.readlink(barn2 / animal)) == (links == "absolute")
    (barn2 / "henry").write_text("cluck")
    with pytest.raises(PermissionError):
        (barn2 / animal).write_text("woof")
    run(arena, "promote", barn2, animal)
    (barn2 / animal).chmod(0o600)
    (barn2 / animal).write_text("woof")
    run(arena, "umount", barn2)
    assert os.listdir(barn2) == []
    assert sorted(os.listdir(changes)) == sorted(["henry", animal])
    assert (changes / animal).read_text() == "woof"
