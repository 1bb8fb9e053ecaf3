"""fuseunion check finds each fault that is planted, and no other, and puts right what can be, also when killed."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from fuseunion.cli.commands.layers.upkeep import check as command
from fuseunion.core.format.link_entries import key_of, token_of
from fuseunion.core.format.numbers import Ino
from fuseunion.mounting.prepare import default_work_path
from fuseunion.offline.upkeep.checking import check
from fuseunion.offline.upkeep.checking.findings import Severity
from fuseunion.offline.upkeep.holding import hold
from tests.support import tree
from tests.support.arena import Arena
from tests.support.crash import before_changes, run_until_change
from tests.support.inprocess import in_process
from tests.support.layers import Dir, File, Link, Name, Node

LOWER: dict[Name, Node] = {
    "a": File(b"lower a"),
    "d/b": File(b"lower b"),
    "d/e/f": File(b"lower f"),
    "twin": File(b"linked"),
    "twin2": Link("twin"),
    "old": Dir(),
    "old/x": File(b"x"),
}


class Place(NamedTuple):
    """An upper with some changes, over a lower."""

    lower: Path
    upper: Path
    work: Path

    def codes(self, *, with_lower: bool = True, severity: Severity | None = None) -> set[str]:
        with ExitStack() as stack:
            held = hold(stack, str(self.upper), None)
            found = check.look(held, [str(self.lower)] if with_lower else [])
        return {each.finding.code for each in found if severity in (None, each.finding.severity)} - {"foreign-owner"}

    def run(self, *arguments: str) -> int:
        return command.main([str(self.upper), "--lower", str(self.lower), *arguments])


def _whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, 0)


def _mark(path: Path, suffix: str, value: bytes) -> None:
    os.setxattr(path, f"{_prefix()}{suffix}", value)


def _prefix() -> str:
    return "trusted.overlay." if os.geteuid() == 0 and _is_initial() else "user.overlay."


def _is_initial() -> bool:
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def _place(arena: Arena) -> Place:
    """Made through a real union, so that all that is in it is as it should be."""
    lower = arena.lower(LOWER)
    upper = arena.directory("upper")
    work = Path(default_work_path(str(upper)))
    work.mkdir(exist_ok=True)
    with in_process([lower], upper, work) as union:
        union.write("a", b"upper a")
        union.unlink("d/b")
        union.create("d/new", b"new")
        union.mkdir("made")
        union.create("made/file", b"file")
        union.symlink("nowhere", "made/link")
        union.write("twin", b"LINKED")
        union.rename("d/e", "moved")
    return Place(lower, upper, work)


def test_a_sound_upper_is_clean(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    place = _place(arena)
    assert place.codes() == set()
    assert place.codes(with_lower=False) == set()
    assert place.run() == 0
    assert capsys.readouterr().out.endswith(": clean\n")


FAULTS: dict[str, tuple[str, Callable[[Place], object]]] = {
    "a file that a killed mount left": ("work-file", lambda at: (at.work / "work/#1").write_bytes(b"garbage")),
    "a directory that a killed mount left": ("work-file", lambda at: (at.work / "work/#2/x").mkdir(parents=True)),
    "a whiteout of nothing": ("whiteout-of-nothing", lambda at: _whiteout(at.upper / "nothing")),
    "a whiteout in a new directory": ("whiteout-of-nothing", lambda at: _whiteout(at.upper / "made/nothing")),
    "a .wh. file of nothing": ("whiteout-of-nothing", lambda at: (at.upper / ".wh.nothing").touch()),
    "a malformed opaque": ("malformed-mark", lambda at: _mark(at.upper / "made", "opaque", b"yes")),
    "an opaque file": ("malformed-mark", lambda at: _mark(at.upper / "a", "opaque", b"y")),
    "a whiteout mark on a full file": ("meaningless-mark", lambda at: _mark(at.upper / "a", "whiteout", b"y")),
    "a redirect of a file": ("meaningless-mark", lambda at: _mark(at.upper / "a", "redirect", b"b")),
    "a redirect to nothing": ("impossible-redirect", lambda at: _mark(at.upper / "made", "redirect", b"/not/there")),
    "a malformed redirect": ("malformed-redirect", lambda at: _mark(at.upper / "made", "redirect", b"/a//b")),
    "an origin of another": ("stale-origin", lambda at: _mark(at.upper / "made/file", "fuseunion.origin", b"\1" * 25)),
    "a malformed origin": ("stale-origin", lambda at: _mark(at.upper / "made/file", "fuseunion.origin", b"?")),
    "links of nothing": ("dangling-links", lambda at: _dangling(at)),
    "links of nothing, older form": ("older-index", lambda at: _older(at)),
    "a killed mount": ("killed", lambda at: (at.work / "links/dirty").touch()),
    "the kernel's index": ("kernel-index-entry", lambda at: _kernel_index(at)),
}

FOR_A_PERSON: dict[str, tuple[str, Callable[[Place], object]]] = {
    "no data": ("metacopy-without-data", lambda at: _mark(at.upper / "made/file", "metacopy", b"")),
    "a malformed owner": (
        "malformed-owner",
        lambda at: os.setxattr(at.upper / "made", "user.containers.override_stat", b"root"),
    ),
    "a volatile mount of another boot": (
        "dirty-volatile",
        lambda at: (at.work / "work/incompat/volatile").mkdir(parents=True),
    ),
    "a foreign file": ("foreign-file", lambda at: (at.work / "thesis.txt").touch()),
    "the last name in the kernel's index": (
        "kernel-index-orphan",
        lambda at: ((at.work / "index").mkdir(), (at.work / "index/00fb").write_bytes(b"data")),
    ),
}


def _key_and_token(at: Place) -> tuple[str, str]:
    """Of the lower file a, which the upper replaces."""
    key = key_of(Ino((at.lower / "a").stat().st_ino), (at.lower / "a").stat())
    return key.decode(), token_of(Ino(at.lower.stat().st_ino), b"a").decode()


def _dangling(at: Place) -> None:
    key, token = _key_and_token(at)
    (at.work / f"links/{key}-2").write_bytes(b"12345")
    (at.work / f"links/{key}-2-{token}").write_bytes(b"a")


def _older(at: Place) -> None:
    key, token = _key_and_token(at)
    group = at.work / "links" / key
    group.mkdir(mode=0o700)
    (group / "l-2").touch()
    (group / "inode").write_bytes(b"12345")
    (group / f"c-{token}").write_bytes(b"a")


def _kernel_index(at: Place) -> None:
    (at.work / "index").mkdir()
    os.link(at.upper / "a", at.work / "index/00fb21000181")


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest) -> tuple[str, Callable[[Place], object]]:
    return FAULTS[str(request.param)]


def _planted(arena: Arena, plant: Callable[[Place], object]) -> Place:
    place = _place(arena)
    place.work.mkdir(exist_ok=True)
    (place.work / "work").mkdir(exist_ok=True)
    plant(place)
    return place


@pytest.mark.actors("root", "user")
def test_a_fault_is_found_and_repaired(arena: Arena, fault: tuple[str, Callable[[Place], object]]) -> None:
    code, plant = fault
    place = _planted(arena, plant)
    before = tree.snapshot(place.upper)
    assert place.codes() == {code}
    assert tree.differences(before, tree.snapshot(place.upper), tree.EXACT) == []
    assert place.run() == command.CheckCode.LEFT
    assert place.run("--repair") == command.CheckCode.REPAIRED
    assert place.codes() == set()
    assert place.run("--repair") == command.CheckCode.CLEAN
    _view_is_right(place)


@before_changes(4)
@pytest.mark.actors("user")
def test_a_repair_that_is_killed_is_finished_by_the_next(arena: Arena, every: int) -> None:
    """All faults at once."""
    place = _place(arena)
    (place.work / "work").mkdir(exist_ok=True)
    for name, (_, plant) in FAULTS.items():
        if name not in ("an opaque file", "a malformed redirect", "a malformed opaque", "a malformed origin"):
            plant(place)
    spare = arena.directory("spare")
    _copy(arena.root, spare, place)
    number = 0
    while not run_until_change(number, lambda: place.run("--repair") and None):
        number += every
        assert place.run("--repair") in (command.CheckCode.REPAIRED, command.CheckCode.CLEAN)
        assert place.codes() == set()
        _view_is_right(place)
        _copy(spare, arena.root, place)
    assert number > 15


def _copy(source: Path, target: Path, place: Place) -> None:
    """Upper and work directory at once, with the hard links between them."""
    names = [place.upper.name, place.work.name]
    for name in names:
        if target != source and (target / name).exists():
            shutil.rmtree(target / name)
    subprocess.run(["cp", "-a", *(source / name for name in names), target], check=True)


def _view_is_right(place: Place) -> None:
    place.work.mkdir(exist_ok=True)
    with in_process([place.lower], place.upper, place.work) as union:
        assert union.read("a") == b"upper a"
        assert union.names("made") == ["file", "link"]
        assert union.read("made/file") == b"file"
        assert union.names("moved") == ["f"]
        assert union.names("d") == ["new"]
        assert union.read("twin2") == b"LINKED"


@pytest.mark.actors("root", "user")
@pytest.mark.parametrize("kind", FOR_A_PERSON)
def test_what_only_a_person_can_decide_stays(arena: Arena, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, plant = FOR_A_PERSON[kind]
    place = _planted(arena, plant)
    before = tree.snapshot(place.upper), tree.snapshot(place.work)
    assert place.codes() == {code}
    assert place.run("--repair") == command.CheckCode.LEFT
    assert place.codes() == {code}
    after = tree.snapshot(place.upper), tree.snapshot(place.work)
    for one, other in zip(before, after, strict=True):
        assert tree.differences(one, other, tree.EXACT) == []
    capsys.readouterr()
    place.run("--json")
    (finding,) = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["code"] == code]
    assert finding["severity"] == "error" and not finding["repairable"]


def test_owners_of_objects_that_are_gone(arena: Arena) -> None:
    lower = arena.lower({"a": File(b"a")})
    upper = arena.directory("upper")
    work = Path(default_work_path(str(upper)))
    work.mkdir()
    os.setxattr(upper, "user.containers.override_stat", b"0:0:0755:dir")
    with in_process([lower], upper, work) as union:
        union.symlink("nowhere", "link")
        from fuseunion.core.ops.attributes import Change

        union.setattr("link", Change(uid=5, gid=6))
    place = Place(lower, upper, work)
    assert place.codes() == set()
    (upper / "link").unlink()
    assert place.codes() == {"stray-owners"}
    assert place.run("--repair") == command.CheckCode.REPAIRED
    assert place.codes() == set()
    assert not work.exists()


@pytest.mark.actors("root", "user")
def test_a_name_that_a_killed_mount_counts_as_gone(arena: Arena) -> None:
    """The token was written, the whiteout was not."""
    place = _place(arena)
    lower = arena.lower({"p": File(b"p"), "q": Link("p")}, "linked")
    with in_process([lower], place.upper, place.work) as union:
        union.unlink("p")
    (place.upper / "p").unlink()
    (place.work / "links/dirty").touch()
    place = place._replace(lower=lower)
    assert {"untrue-link", "killed"} <= place.codes()
    place.run("--repair")
    assert not {"untrue-link", "killed"} & place.codes()


@pytest.mark.actors("user")
def test_the_index_is_not_judged_by_other_lowers(arena: Arena) -> None:
    """Nor by none: a copy that only the index holds stays."""
    place = _place(arena)
    _dangling(place)
    other = arena.lower({"other": File()}, "other")
    before = sorted(os.listdir(place.work / "links"))
    for lowers in ([], ["--lower", str(other)]):
        command.main([str(place.upper), "--repair", *lowers])
        assert sorted(os.listdir(place.work / "links")) == before


@pytest.mark.actors("user")
def test_a_mounted_upper_is_refused(arena: Arena) -> None:
    lower = arena.lower(LOWER)
    with arena.mount(lower):
        done = arena.place.fuseunion("check", arena.upper, "--repair")
        assert done.returncode == 4 and "in use" in done.stderr, done


def test_links_out_of_the_tree_are_not_followed(arena: Arena) -> None:
    """An upper of somebody else's may hold anything."""
    place = _place(arena)
    treasure = arena.directory("treasure")
    (treasure / "file").write_bytes(b"mine")
    (place.upper / "out").symlink_to(treasure)
    (place.work / "work").mkdir(parents=True, exist_ok=True)
    (place.work / "work/#1").symlink_to(treasure)
    before = tree.snapshot(treasure)
    place.run("--repair")
    assert tree.differences(before, tree.snapshot(treasure), tree.EXACT) == []
    assert (place.upper / "out").is_symlink()
