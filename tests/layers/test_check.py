"""fuseunion check finds each fault that is planted, and no other, and puts right what can be, also when killed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fuseunion.cli.commands.layers.upkeep import check as command
from fuseunion.core.format.link_entries import key_of, token_of
from fuseunion.core.format.numbers import Ino
from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting.prepare import default_work_path
from fuseunion.offline.upkeep.checking import check, journal
from fuseunion.offline.upkeep.checking.findings import Severity
from fuseunion.offline.upkeep.checking.journal import RepairJournal
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
            found = check.look(held, [str(self.lower)] if with_lower else [], RepairJournal(held))
        return {each.finding.code for each in found if severity in (None, each.finding.severity)} - {"foreign-owner"}

    def run(self, *arguments: str) -> int:
        return command.main([str(self.upper), "--lower", str(self.lower), *arguments])

    @property
    def journal(self) -> Path:
        return self.upper.with_name(f".{self.upper.name}.fuseunion-repairs") / "journal"

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.journal.read_bytes().splitlines()]


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


@before_changes(9)
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
    before = _objects(place)
    number = 0
    cut_off = set()
    while not run_until_change(number, lambda: place.run("--repair") and None):
        number += every
        steps = place.records() if place.journal.exists() else []
        for path in before - _objects(place):
            assert any(_is_about(step, path) for step in steps), f"{path} went, and nothing says so"
        cut_off.add("cut-off-repair" in place.codes())
        assert place.run("--repair") in (command.CheckCode.REPAIRED, command.CheckCode.CLEAN)
        assert place.codes() == set()
        if place.journal.parent.exists():
            shutil.rmtree(place.journal.parent)
        _view_is_right(place)
        _copy(spare, arena.root, place)
    assert number > 15 and cut_off == {True, False}


def _objects(place: Place) -> set[str]:
    """What is in the upper and in the work directory, by its path in them."""
    return {
        str(path.relative_to(top))
        for top in (place.upper, place.work)
        for path in top.rglob("*")
        if path != place.work / "work"
    }


def _is_about(record: dict[str, Any], path: str) -> bool:
    """Whether a step takes an object away, or what holds it."""
    return "step" in record and (
        path == record["path"]
        or path.startswith(record["path"] + "/")
        or any(path.endswith("/" + each["path"]) for each in record["had"].get("objects", ()))
    )


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


# -- the journal -------------------------------------------------------------------------------------------------------


@pytest.mark.actors("root", "user")
def test_what_goes_can_be_put_back_from_the_journal(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    place = _place(arena)
    _whiteout(place.upper / "nothing")
    _mark(place.upper / "made", "redirect", b"/not/there")
    (place.work / "work/#1").mkdir(parents=True)
    (place.work / "work/#1/file").write_bytes(b"garbage")
    os.chmod(place.work / "work/#1/file", 0)
    os.symlink("/etc/passwd", place.work / "work/#2")
    before = tree.snapshot(place.upper), tree.snapshot(place.work)
    assert place.run("--repair", "--json") == command.CheckCode.REPAIRED
    assert json.loads(capsys.readouterr().out)["journal"] == str(place.journal)
    begun, *records, finished = place.records()
    assert begun["repair"] == "begun" and begun["upper"] == str(place.upper) and finished == {"repair": "finished"}
    assert sorted(each["done"] for each in records if "done" in each) == [1, 2, 3, 4]
    for each in (each for each in records if "step" in each):
        _put_back(place.work if each["in_work"] else place.upper, each)
    os.removexattr(place.upper / "made", f"{_prefix()}opaque")
    after = tree.snapshot(place.upper), tree.snapshot(place.work)
    for one, other, fields in zip(before, after, (tree.SEEN, set(tree.SEEN) - {"mtime"}), strict=True):
        assert tree.differences(one, other, fields) == []
    assert place.journal.stat().st_mode & 0o777 == 0o600 and place.journal.parent.stat().st_mode & 0o777 == 0o700


def _put_back(top: Path, step: dict[str, Any]) -> None:
    had = step["had"]
    if "attribute" in had:
        st = (top / step["path"]).stat()
        os.setxattr(top / step["path"], had["attribute"], base64.b64decode(had["value"]))
        os.utime(top / step["path"], ns=(st.st_atime_ns, st.st_mtime_ns))
        return
    parent = (top / step["path"]).parent
    times = parent.stat()
    for each in had["objects"]:
        path, mode = parent / each["path"], int(each["mode"], 8)
        if stat.S_ISDIR(mode):
            path.mkdir()
        elif stat.S_ISLNK(mode):
            path.symlink_to(os.fsdecode(base64.b64decode(each["target"])))
        elif stat.S_ISCHR(mode):
            os.mknod(path, mode, os.makedev(*each["device"]))
        else:
            path.write_bytes(base64.b64decode(each["data"]))
        if not stat.S_ISLNK(mode):
            path.chmod(stat.S_IMODE(mode))
    for each in reversed(had["objects"]):
        os.utime(parent / each["path"], ns=(0, each["mtime_ns"]), follow_symlinks=False)
    os.utime(parent, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.actors("user")
def test_a_cut_off_repair_is_told_and_gone_on_with(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    """Also by a command that finds nothing else to do."""
    place = _planted(arena, lambda at: _whiteout(at.upper / "nothing"))
    assert place.run("--repair") == command.CheckCode.REPAIRED
    lines = place.journal.read_bytes().splitlines(keepends=True)
    place.journal.write_bytes(b"".join(lines[:-1]) + b'{"repair": "fin')
    capsys.readouterr()
    assert place.run() == command.CheckCode.LEFT
    told = capsys.readouterr().out
    assert f"leftover: '{place.journal}' says that a repair of " in told
    assert "was cut off, 1 of 1 known steps were taken" in told
    assert place.run("--repair") == command.CheckCode.REPAIRED
    assert place.run() == command.CheckCode.CLEAN
    assert f"written down in '{place.journal}'" in capsys.readouterr().out


@pytest.mark.actors("user")
def test_the_journal_stays_small(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others begin another file, and so does a very long one."""
    monkeypatch.setattr(journal, "_LONG", 5_000)
    monkeypatch.setattr(journal, "_FULL", 20_000)
    place = _place(arena)
    for round_ in range(3):
        for number in range(200):
            _whiteout(place.upper / f"nothing {round_} {number}")
        assert place.run("--repair") == command.CheckCode.REPAIRED
    assert sorted(os.listdir(place.journal.parent)) == ["journal", "journal.old"]
    assert all(path.stat().st_size < 60_000 for path in place.journal.parent.iterdir())
    assert place.records()[-1] == {"repair": "finished"}


STRANGE: dict[str, Callable[[Path, Path], object]] = {
    "a link in place of the directory": lambda at, treasure: at.symlink_to(treasure),
    "a directory that others may write": lambda at, treasure: (at.mkdir(), at.chmod(0o777)),
    "a link in place of the journal": lambda at, treasure: (
        at.mkdir(0o700),
        (at / "journal").symlink_to(treasure / "file"),
    ),
    "another name of the journal": lambda at, treasure: (
        at.mkdir(0o700),
        os.link(treasure / "file", at / "journal"),
    ),
    "a pipe": lambda at, treasure: (at.mkdir(0o700), os.mkfifo(at / "journal")),
    "a file": lambda at, treasure: at.touch(),
}


@pytest.mark.actors("root", "user")
@pytest.mark.parametrize("strange", STRANGE)
def test_a_journal_that_is_not_ours_is_refused(arena: Arena, strange: str) -> None:
    place = _planted(arena, lambda at: _whiteout(at.upper / "nothing"))
    treasure = arena.directory("treasure")
    (treasure / "file").write_bytes(b"mine")
    STRANGE[strange](place.journal.parent, treasure)
    before = tree.snapshot(treasure), tree.snapshot(place.upper)
    with pytest.raises(UserError, match="cannot be used") as raised:
        place.run("--repair")
    assert raised.value.exit_code == ExitCode.LAYERS
    assert place.codes() == {"whiteout-of-nothing", "foreign-journal"}
    assert place.run() == command.CheckCode.LEFT
    assert (tree.snapshot(treasure), tree.snapshot(place.upper)) == before
    if place.journal.parent.is_symlink() or place.journal.parent.is_file():
        place.journal.parent.unlink()
    else:
        shutil.rmtree(place.journal.parent)


@pytest.mark.root
@pytest.mark.actors("root")
def test_a_journal_of_somebody_else_is_refused(arena: Arena) -> None:
    place = _planted(arena, lambda at: _whiteout(at.upper / "nothing"))
    place.journal.parent.mkdir(0o700)
    os.chown(place.journal.parent, 1234, 1234)
    with pytest.raises(UserError, match="belongs to another user"):
        place.run("--repair")
    assert (place.upper / "nothing").exists()


@contextmanager
def _small_disk(root: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "small", root], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", root], check=True)


@pytest.mark.root
@pytest.mark.actors("root")
def test_on_a_full_disk_nothing_goes_that_is_not_written_down(arena: Arena) -> None:
    lower = arena.lower(LOWER)
    with _small_disk(arena.directory("disk")) as small:
        upper = small / "upper"
        upper.mkdir()
        for number in range(100):
            _whiteout(upper / f"nothing {number}")
        place = Place(lower, upper, Path(default_work_path(str(upper))))
        filler = small / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        with pytest.raises(UserError, match="No space left on device") as raised:
            place.run("--repair")
        assert raised.value.exit_code in (ExitCode.FAILURE, ExitCode.LAYERS)
        assert len(os.listdir(upper)) == 100
        filler.unlink()
        assert place.run("--repair") == command.CheckCode.REPAIRED
        assert os.listdir(upper) == [] and len([each for each in place.records() if "step" in each]) == 100
