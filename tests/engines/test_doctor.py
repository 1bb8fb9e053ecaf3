"""`fuseunion doctor` tells the truth, has a remedy for every no, and changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fuseunion.doctor.machine import free_range
from fuseunion.errors import ExitCode, UserError
from tests.engines.shown import Engine, engines_of, run
from tests.support import libc, tree
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


def _remedies_stand_where_they_should(report: dict[str, Any]) -> None:
    """One for every no, none beside an ok."""
    for finding in report["findings"]:
        assert finding["ok"] is None or bool(finding["remedy"]) is not finding["ok"], finding
    for engine in report["engines"].values():
        assert bool(engine["remedy"]) is bool(engine["why_not"]) is not engine["works"], engine


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
    _remedies_stand_where_they_should(report)
    assert all(engine["losses"] for engine in report["engines"].values())
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
    report = _report(arena, "--uid-map", "0:0:1", lower, arena.root / "no/upper", merged, code=3)
    assert report["engines"]["kernel"]["why_not"] == "it has no id maps"
    assert report["chosen"] is None
    _remedies_stand_where_they_should(report)
    assert _report(arena, "--uid-map", "0:0:1", lower, arena.upper, merged)["chosen"] == "fuse"
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


def _refusal(arena: Arena, *arguments: str | Path, code: int) -> str:
    """What the doctor says of a mount, which is what the mount itself says, with its exit status."""
    before = tree.snapshot(arena.root)
    report = _report(arena, *arguments, code=code)
    assert not tree.differences(before, tree.snapshot(arena.root), ("kind", "mode", "content", "xattrs", "uid"))
    _remedies_stand_where_they_should(report)
    assert report["chosen"] is None
    (finding,) = [finding for finding in report["findings"] if finding["name"] == "this mount"]
    said = f"{finding['says']}; {finding['remedy']}"
    assert run(arena, *arguments, code=code).strip().removeprefix("fuseunion: ") in (finding["says"], said)
    return said


@pytest.mark.actors("user")
@pytest.mark.limit(120)
def test_it_fails_as_the_mount_would(arena: Arena) -> None:
    lower, merged = arena.lower({"file": File()}), arena.directory("merged")
    assert "does not exist" in _refusal(arena, arena.root / "missing", arena.upper, merged, code=3)
    assert "lies inside the lower" in _refusal(arena, lower, lower / "new", merged, code=3)
    assert "belongs to another user" in _refusal(arena, lower, "/usr", merged, "--work", arena.root / "w", code=3)
    arena.directory("foreign/data")
    assert "foreign files" in _refusal(arena, "--work", arena.root / "foreign", lower, arena.upper, merged, code=3)
    with arena.mount(lower, upper=arena.upper, merged="other"):
        assert "in use" in _report_refusal(arena, lower, arena.upper, merged, code=4)
        assert "live mount of fuseunion" in _report_refusal(
            arena, lower, arena.root / "u", arena.root / "other", code=4
        )


def _report_refusal(arena: Arena, *arguments: str | Path, code: int) -> str:
    """As `_refusal`, where the tree cannot be looked through."""
    report = _report(arena, *arguments, code=code)
    return str(next(finding["says"] for finding in report["findings"] if finding["name"] == "this mount"))


@pytest.mark.actors("root", "userns")
@pytest.mark.limit(120)
@pytest.mark.parametrize("what", ["another device", "a file"])
def test_a_broken_device(arena: Arena, what: str) -> None:
    """What lies at /dev/fuse can be opened, and is not FUSE: auto passes on, and the doctor says why."""
    lower, merged = arena.lower({"file": File()}), arena.directory("merged")
    (arena.root / "device").touch()
    libc.mount("/dev/null" if what == "another device" else str(arena.root / "device"), "/dev/fuse", "", libc.MS_BIND)
    try:
        report = _report(arena, lower, arena.upper, merged)
        assert report["chosen"] == "kernel"
        _remedies_stand_where_they_should(report)
        assert {finding["name"]: finding["ok"] for finding in report["findings"]}["/dev/fuse"] is False
        done = arena.place.fuseunion(lower, arena.upper, merged)
        assert (done.returncode, done.stderr.count("\n")) == (0, 1)
        assert "the kernel engine is used (not fuse: /dev/fuse is not the device of FUSE" in done.stderr
        assert run(arena, "--engine", "fuse", lower, arena.root / "u", arena.directory("m"), code=5)
        run(arena, "umount", merged)
    finally:
        libc.umount("/dev/fuse")


@pytest.mark.actors("user")
def test_without_mtab_nothing_is_mounted_that_could_not_be_unmounted(arena: Arena) -> None:
    """fusermount3 mounts for a user without /etc/mtab, and does not unmount."""
    from fuseunion.engines.fuse import mount_point
    from fuseunion.engines.fuse.fuse_engine import FuseEngine

    mount_point.MTAB = str(arena.root / "missing")  # this process ends with the test
    merged = arena.directory("merged")
    with pytest.raises(UserError, match=r"cannot unmount without .*; make it with: ln -s") as caught:
        mount_point.make(str(merged), mount_point.MountFlags())
    assert caught.value.exit_code is ExitCode.UNAVAILABLE
    assert not os.path.ismount(merged)
    found = {finding.name: finding for finding in FuseEngine().needs()}
    assert found["fusermount3"].ok is False
    assert found["fusermount3"].remedy.startswith("ln -s")


def test_the_ids_that_it_proposes_are_nobodys() -> None:
    assert free_range([]) == "100000-165535"
    assert free_range([("somebody", 100_000, 65_536), ("other", 300_000, 1_000)]) == "301000-366535"
