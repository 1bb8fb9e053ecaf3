"""The example of docs/engines.md: a read-only directory becomes a ranch in place, or beside itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.engines.shown import run
from tests.support.arena import Arena
from tests.support.layers import File, Name, Node

PROJECT: dict[Name, Node] = {"readme": File(b"read"), "settings": File(b"set"), "source/main": File(b"main")}


@pytest.mark.actors("userns", "root")
def test_in_place(arena: Arena) -> None:
    """In a user namespace the directory itself becomes the ranch; its files are kept aside, read-only."""
    project, aside = arena.lower(PROJECT, "project"), arena.root / ".changes.fuseunion-ranch/lower/0"
    changes = arena.root / "changes"
    run(arena, "--engine", "ranch", project, changes, project)
    assert sorted(os.listdir(project)) == ["readme", "settings", "source"]
    assert os.path.realpath(project / "readme") == str(aside / "readme")
    (project / "notes").write_text("new")
    (project / "source/notes").write_text("new")
    with pytest.raises(OSError, match="Read-only file system"):
        (project / "readme").write_text("changed")
    (project / "settings").unlink()
    assert sorted(os.listdir(project)) == ["notes", "readme", "source"]
    run(arena, "umount", project)
    assert sorted(os.listdir(project)) == ["readme", "settings", "source"]
    assert sorted(os.listdir(changes)) == ["notes", "settings", "source"]
    assert (changes / "notes").read_text() == "new"
    assert os.lstat(changes / "settings").st_rdev == 0


def _read_only_directory(arena: Arena) -> Path:
    """A directory that the user cannot change: one of the system's."""
    for path in (Path("/usr/share/common-licenses"), Path("/usr/share/zoneinfo"), Path("/etc/init.d")):
        if path.is_dir():
            arena.guard(path)
            return path
    raise AssertionError("no directory of the system is suitable")


@pytest.mark.actors("denied", "user")
@pytest.mark.parametrize("links", ["absolute", "relative"])
def test_without_any_privilege(arena: Arena, links: str) -> None:
    """Any user makes a ranch of files that can only be read, in an empty directory."""
    lower, working, changes = _read_only_directory(arena), arena.directory("working"), arena.root / "changes"
    run(arena, "--engine", "ranch", "--links", links, lower, changes, working)
    assert sorted(os.listdir(working)) == sorted(os.listdir(lower))
    name = min(path.name for path in lower.iterdir() if path.is_file() and not path.is_symlink())
    assert (working / name).read_bytes() == (lower / name).read_bytes()
    assert os.path.isabs(os.readlink(working / name)) == (links == "absolute")
    (working / "notes").write_text("new")
    with pytest.raises(PermissionError):
        (working / name).write_text("changed")
    run(arena, "promote", working, name)
    (working / name).chmod(0o600)
    (working / name).write_text("changed")
    run(arena, "umount", working)
    assert os.listdir(working) == []
    assert sorted(os.listdir(changes)) == sorted(["notes", name])
    assert (changes / name).read_text() == "changed"
