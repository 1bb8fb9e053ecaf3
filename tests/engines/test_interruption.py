"""A ranch that is killed while it is built or collected: nothing is lost, and the same command, or repair, goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.engines.killing import kill_at, points
from tests.engines.shown import Engine, Shown, run, seen, shown
from tests.engines.test_round_trips import LOWER, first, second
from tests.support import tree
from tests.support.actor import Role
from tests.support.arena import Arena

Seen = dict[bytes, tuple[object, ...]]

pytestmark = [pytest.mark.actors("userns", "denied"), pytest.mark.limit(500)]


def _engine(arena: Arena) -> Engine:
    return Engine.RANCH_COPIES if arena.actor.role is Role.DENIED else Engine.RANCH


def _expected(arena: Arena, lower: Path) -> tuple[Seen, Seen]:
    with shown(arena, Engine.PLAIN, [lower], arena.upper, name="plain") as plain:
        first(plain)
        one = seen(plain.root)
        second(plain)
        return one, seen(plain.root)


def _template(arena: Arena, lower: Path) -> Path:
    """An upper that holds the first changes."""
    upper = arena.root / "template"
    with shown(arena, _engine(arena), [lower], upper, name="template-merged") as merged:
        first(merged)
    return upper


def _copy(template: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", template, target], check=True)
    return target


def _contents(upper: Path) -> dict[bytes, tree.Entry]:
    return {path: entry._replace(ctime=0, ino=0, blocks=0, nlink=0) for path, entry in tree.snapshot(upper).items()}


def _shows(arena: Arena, lower: Path, upper: Path, wanted: Seen, when: str) -> None:
    with shown(arena, _engine(arena), [lower], upper, name="check") as merged:
        assert seen(merged.root) == wanted, when


def _fresh(arena: Arena, name: str) -> Path:
    shutil.rmtree(arena.root / name, ignore_errors=True)
    return arena.directory(name)


class Killed(NamedTuple):
    """A build that was killed: when, of what, and what was in its UPPER before."""

    when: str
    upper: Path
    merged: Path
    before: dict[bytes, tree.Entry]


def _killed_builds(arena: Arena, lower: Path) -> Iterator[Killed]:
    """A build, killed before each of its changes."""
    template = _template(arena, lower)
    options = _engine(arena).options
    upper, merged = _copy(template, arena.root / "counted"), arena.directory("merged")
    places = list(points(arena, *options, lower, upper, merged))
    run(arena, "umount", merged)
    before = _contents(template)
    for number, (call, count) in enumerate(places):
        upper, merged = _copy(template, arena.root / f"upper{number}"), _fresh(arena, "merged")
        kill_at(arena, call, count, *options, lower, upper, merged)
        yield Killed(f"killed at {call} number {count}", upper, merged, before)


def test_building(arena: Arena) -> None:
    """Built again after each kill, the ranch is whole; and what a kill left can be taken away instead."""
    lower = arena.lower(LOWER)
    expected, _ = _expected(arena, lower)
    for when, upper, merged, before in _killed_builds(arena, lower):
        assert _contents(upper) == before, when
        done = arena.place.fuseunion(*_engine(arena).options, lower, upper, merged)
        if done.returncode == 4:  # it was complete, but for the end of the process
            assert "is a ranch already" in done.stderr, f"{when}: {done.stderr}"
        else:
            assert done.returncode == 0, f"{when}: {done.stderr}"
        assert seen(merged) == expected, when
        run(arena, "umount", merged)
        assert _contents(upper) == before, when
        assert os.listdir(merged) == [], when


def test_giving_up_a_build(arena: Arena) -> None:
    """What a kill left is taken away by repair, and UPPER is what it was."""
    for when, upper, merged, before in _killed_builds(arena, arena.lower(LOWER)):
        done = arena.place.fuseunion("doctor", "--repair", upper)
        assert done.returncode == 0 or "nothing to repair" in done.stderr, f"{when}: {done.stderr}"
        if "is whole" in done.stdout:
            run(arena, "umount", merged)
        assert _contents(upper) == before, when
        assert os.listdir(merged) == [], when
        left = [name for name in os.listdir(arena.root) if name.startswith(f".{upper.name}.") and "work" not in name]
        assert not left, when


def test_collecting(arena: Arena) -> None:
    """Whatever was changed is in UPPER when umount, or repair, has come to its end at last."""
    lower = arena.lower(LOWER)
    _, expected = _expected(arena, lower)
    template = _template(arena, lower)
    options = _engine(arena).options

    def built(name: str) -> tuple[Path, Path]:
        upper, merged = _copy(template, arena.root / name), _fresh(arena, "merged")
        run(arena, *options, lower, upper, merged)
        second(Shown(arena, _engine(arena), merged))
        return upper, merged

    upper, merged = built("counted")
    places = list(points(arena, "umount", merged))
    for number, (call, count) in enumerate(places):
        when = f"killed at {call} number {count}"
        upper, merged = built(f"upper{number}")
        kill_at(arena, call, count, "umount", merged)
        again = ("umount", merged) if number % 2 else ("doctor", "--repair", upper)
        done = arena.place.fuseunion(*again)
        if done.returncode == 0 and "is whole" in done.stdout:
            run(arena, "umount", merged)
        elif done.returncode != 0:
            assert "nothing to repair" in done.stderr or "not a mount point" in done.stderr, f"{when}: {done.stderr}"
            if number % 2 and (arena.root / f".{upper.name}.fuseunion-ranch").exists():
                run(arena, "doctor", "--repair", upper)
        _shows(arena, lower, upper, expected, when)
        assert os.listdir(merged) == [], when
