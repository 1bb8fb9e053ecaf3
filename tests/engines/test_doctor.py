"""`fuseunion doctor` tells the truth, has a remedy for every no, and changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.engines.shown import Engine, engines_of, run
from tests.support import tree
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.layers import File

everybody = pytest.mark.actors("root", "user", "userns", "denied")


def _report(arena: Arena, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    done = arena.place.fuseunion("doctor", "--json", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert isinstance(report, dict)
    return report


@everybody
@pytest.mark.limit(120)
def test_what_it_says_is_so(arena: Arena) -> None:
    """The engines that work for the actor, the one that is taken, and a remedy for every no."""
    lower, merged = arena.lower({"file": File()}), arena.directory("merged")
    before = tree.snapshot(arena.root)
    report = _report(arena, lower, arena.upper, merged)
    changed = tree.differences(before, tree.snapshot(arena.root), ("kind", "mode", "content", "xattrs", "uid"))
    assert not changed, changed
    works = {name for name, engine in report["engines"].items() if engine["works"]}
    expected = {engine.value for engine in engines_of(arena.actor.role) if engine in (Engine.FUSE, Engine.KERNEL)}
    assert works == expected | {"ranch"}
    assert report["chosen"] == ("ranch" if arena.actor.role is Role.DENIED else "fuse")
    for finding in report["findings"]:
        assert finding["ok"] is not False or finding["remedy"], finding
    for engine in report["engines"].values():
        assert engine["works"] or engine["why_not"]
        assert engine["losses"]
    answers = {finding["name"]: finding["ok"] for finding in report["findings"]}
    assert answers["/dev/fuse"] is (arena.actor.role is not Role.DENIED)
    assert answers["user namespaces"] is (arena.actor.role is not Role.DENIED)
    assert answers["upper: user attributes"] is True
    assert answers["upper: trusted attributes"] is (arena.actor.role is Role.ROOT)


@everybody
@pytest.mark.limit(120)
def test_text(arena: Arena) -> None:
    """Without layers, for people."""
    done = arena.place.fuseunion("doctor")
    assert done.returncode == 0 and done.stderr == ""
    for words in ("kernel: Linux", "/dev/fuse: ", "user namespaces: ", "ranch engine: works", "would be taken: "):
        assert words in done.stdout


@pytest.mark.actors("userns")
@pytest.mark.limit(120)
def test_options_and_missing_directories(arena: Arena) -> None:
    """What an option rules out, and what is not there."""
    lower, merged = arena.lower({"file": File()}), arena.directory("merged")
    report = _report(arena, "--uid-map", "0:0:1", lower, arena.root / "no/upper", merged)
    assert report["engines"]["kernel"]["why_not"] == "it has no id maps"
    assert report["chosen"] == "fuse"
    named = {finding["name"]: finding for finding in report["findings"]}
    assert named[f"upper {arena.root}/no/upper"]["remedy"] == f"mkdir '{arena.root}/no'"
    report = _report(arena, "--engine", "kernel", "-o", "noacl", lower, arena.upper, merged, code=5)
    assert report["chosen"] is None
    assert "unavailable option" in run(arena, "doctor", "--speed", code=2)


@pytest.mark.actors("userns")
def test_a_whole_ranch_is_left_alone(arena: Arena) -> None:
    """Repair takes nothing away that is in use."""
    lower, merged = arena.lower({"file": File()}), arena.directory("merged")
    run(arena, "--engine", "ranch", lower, arena.upper, merged)
    assert "is whole" in arena.place.fuseunion("doctor", "--repair", merged).stdout
    assert os.listdir(merged) == ["file"]
    run(arena, "umount", merged)
