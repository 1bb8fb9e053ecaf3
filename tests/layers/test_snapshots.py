"""Snapshots of an upper, mounted or not, are of one instant; restoring brings back all of it, also when killed."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fuseunion.cli.commands.layers.upkeep import restore, snapshot, snapshots
from fuseunion.core.ops.attributes import Change
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux.runtime import pauses
from fuseunion.mounting.prepare import default_work_path
from tests.layers import uppers
from tests.layers.uppers import LOWER
from tests.support import tree
from tests.support.arena import Arena
from tests.support.crash import before_changes, run_until_change
from tests.support.disk import disk
from tests.support.inprocess import in_process
from tests.support.waiting import wait_until

RICH: list[tuple[object, ...]] = [
    ("write", "b", b"changed"),
    ("rename", "d", "moved"),
    ("write", "t1", b"TWINS"),
    ("unlink", "a"),
    ("remove", "h"),
    ("create", "n", b"new"),
    ("link", "n", "n2"),
    ("setxattr", "n"),
    ("symlink", "nowhere", "link2"),
]

_AS_SHOWN = tuple(field for field in tree.SEEN if field != "xattrs")
"""The mark of an origin names the object that it is on."""

LATER: list[tuple[object, ...]] = [
    ("write", "n", b"changed in place"),
    ("unlink", "n2"),
    ("create", "a", b"again"),
    ("remove", "moved"),
    ("write", "t1", b"other twins"),
    ("chmod", "b", 0o755),
]


def _numbers(lower: Path, upper: Path) -> dict[str, tuple[object, ...]]:
    """What is shown, inode numbers of what has one in a lower included."""
    work = Path(default_work_path(str(upper)))
    made = not work.exists()
    work.mkdir(exist_ok=True)
    try:
        with in_process([lower], upper, work) as union:
            return union.tree()
    finally:
        if made:
            shutil.rmtree(work)


def _change(lower: Path, upper: Path, operations: list[tuple[object, ...]]) -> None:
    work = Path(default_work_path(str(upper)))
    work.mkdir(mode=0o700, exist_ok=True)
    with in_process([lower], upper, work) as union:
        uppers.apply(union, operations)


def test_a_snapshot_is_restored(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    lower = arena.lower(LOWER)
    upper = uppers.made(arena.root, lower, RICH)
    before, view = tree.snapshot(upper), _numbers(lower, upper)
    with in_process([lower], upper, arena.root / ".upper.fuseunion-work") as union:
        number = union.find("b").ino
    assert snapshot.main([str(upper), "one"]) == 0
    assert tree.differences(before, tree.snapshot(upper), tree.EXACT) == []
    _change(lower, upper, LATER)
    assert _numbers(lower, upper) != view
    assert snapshot.main([str(upper), "two"]) == 0
    later = _numbers(lower, upper)
    for name, expected in (("one", view), ("two", later), ("one", view)):
        assert restore.main([str(upper), name]) == 0
        assert _numbers(lower, upper) == expected
    with in_process([lower], upper, arena.root / ".upper.fuseunion-work") as union:
        assert union.find("b").ino == number, "the number of the lower is kept"
    capsys.readouterr()
    assert snapshots.main([str(upper)]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["one", "two"]
    assert snapshots.main([str(upper), "--remove", "one", "--remove", "two"]) == 0
    assert snapshots.main([str(upper)]) == 0
    assert capsys.readouterr().out == ""


def test_a_snapshot_shares_nothing_with_the_upper(arena: Arena) -> None:
    """A mount writes to the files of an upper in place."""
    lower = arena.lower(LOWER)
    upper = uppers.made(arena.root, lower, RICH)
    for name in ("one", "two"):
        snapshot.main([str(upper), name])
    kept = arena.root / ".upper.fuseunion-snapshots"
    own = {path.lstat().st_ino for path in upper.rglob("*")}
    for name in ("one", "two"):
        assert not own & {path.lstat().st_ino for path in (kept / name).rglob("*")}
    before = tree.snapshot(kept / "one/upper")
    for path in upper.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.write_bytes(b"overwritten")
    assert tree.differences(before, tree.snapshot(kept / "one/upper"), tree.EXACT) == []


@pytest.mark.actors("user")
def test_what_has_not_changed_is_shared_with_the_snapshot_before(arena: Arena) -> None:
    """Where data cannot be shared; the time of change must be a second old, so that it tells."""
    lower = arena.lower(LOWER)
    upper = uppers.made(arena.root, lower, [("create", "big", b"x"), ("create", "small", b"x")])
    newest = max(path.lstat().st_ctime_ns for path in upper.rglob("*"))
    wait_until(lambda: _now() > newest + 1_100_000_000, "the files to be old enough", 5)
    snapshot.main([str(upper), "one"])
    (upper / "small").write_bytes(b"y")
    snapshot.main([str(upper), "two"])
    kept = arena.root / ".upper.fuseunion-snapshots"
    assert (kept / "one/upper/big").stat().st_ino == (kept / "two/upper/big").stat().st_ino
    assert (kept / "one/upper/small").read_bytes() == b"x"
    assert (kept / "two/upper/small").read_bytes() == b"y"
    snapshots.main([str(upper), "--remove", "one"])
    assert (kept / "two/upper/big").read_bytes() == b"x"


def _now() -> int:
    import time

    return time.time_ns()


@before_changes(5)
@pytest.mark.actors("user")
def test_making_one_is_killed_anywhere(arena: Arena, every: int) -> None:
    lower = arena.lower(LOWER)
    upper = uppers.made(arena.root, lower, RICH)
    before = tree.snapshot(upper)
    number = 0
    while not run_until_change(number, lambda: snapshot.main([str(upper), "one"]) and None):
        number += every
        assert tree.differences(before, tree.snapshot(upper), tree.EXACT) == []
        kept = arena.root / ".upper.fuseunion-snapshots"
        if (kept / "one").exists():
            whiteouts = [path.name for path in upper.rglob("*") if path.is_char_device()]
            changed = tree.differences(before, tree.snapshot(kept / "one/upper"), _AS_SHOWN)
            assert not [line for line in changed if line.split("'")[1].rpartition("/")[2] not in whiteouts]
            assert snapshots.main([str(upper), "--remove", "one"]) == 0
    assert os.listdir(arena.root / ".upper.fuseunion-snapshots") == ["one"]


@before_changes(6)
@pytest.mark.actors("user")
def test_restoring_is_killed_anywhere(arena: Arena, every: int) -> None:
    """It is as before, as it is to be, or no mount takes it; and the same command comes to its end."""
    lower = arena.lower(LOWER)
    upper = uppers.made(arena.root, lower, RICH)
    wanted = _numbers(lower, upper)
    snapshot.main([str(upper), "one"])
    _change(lower, upper, LATER)
    later = _numbers(lower, upper)
    snapshot.main([str(upper), "later"])
    number, refused, seen = 0, 0, set()
    while not run_until_change(number, lambda: restore.main([str(upper), "one"]) and None):
        number += every
        work = Path(default_work_path(str(upper)))
        if (work / "restore-is-not-finished").exists():
            refused += 1
            if refused % 4 == 0:
                merged = arena.directory("merged")
                done = arena.place.fuseunion(lower, upper, merged)
                assert done.returncode == ExitCode.LAYERS and "restore-is-not-finished" in done.stderr, done
        else:
            now = _numbers(lower, upper)
            assert now in (wanted, later)
            seen.add(now == wanted)
        restore.main([str(upper), "one"])
        assert _numbers(lower, upper) == wanted
        assert "#restore" not in os.listdir(arena.root / ".upper.fuseunion-snapshots")
        restore.main([str(upper), "later"])
        assert _numbers(lower, upper) == later
    assert refused > 1 and False in seen


def test_stored_owners_are_restored(arena: Arena) -> None:
    lower = arena.lower({})
    upper = arena.directory("upper")
    os.setxattr(upper, "user.containers.override_stat", b"0:0:0755:dir")
    work = Path(default_work_path(str(upper)))
    work.mkdir(mode=0o700)
    with in_process([lower], upper, work) as union:
        union.create("file")
        union.setattr("file", Change(uid=7, gid=8))
        union.symlink("nowhere", "link")
        union.setattr("link", Change(uid=5, gid=6))
    view = _numbers(lower, upper)
    snapshot.main([str(upper), "one"])
    with in_process([lower], upper, work) as union:
        union.setattr("link", Change(uid=50, gid=60))
    restore.main([str(upper), "one"])
    assert _numbers(lower, upper) == view
    assert view["/link"][2:4] == (5, 6)


# -- while it is mounted -----------------------------------------------------------------------------------------------


def _kept_beside(arena: Arena) -> None:
    """A mount that ends checks what came beside its upper since it began."""
    (arena.root / ".upper.fuseunion-snapshots").mkdir(mode=0o700)


WRITER = """
import os, sys
number = 0
os.chdir(sys.argv[1])
while not os.path.exists("stop"):
    number += 1
    # a is written before b, and b before c is renamed: no instant has them the other way round.
    for name in ("a", "b"):
        with open(name, "r+b", buffering=0) as file:
            file.write(b"%08d" % number)
    with open("new", "wb", buffering=0) as file:
        file.write(b"%08d" % number)
    os.rename("new", "c")
    if number == 50:
        print("going", flush=True)
"""


@pytest.mark.actors("root", "user")
def test_a_live_upper_is_caught_in_one_instant(arena: Arena) -> None:
    """A program writes all the time; each snapshot has its files in the order in which they were written."""
    lower = arena.lower({})
    _kept_beside(arena)
    with arena.mount(lower) as mount:
        for name in ("a", "b", "c"):
            (mount / name).write_bytes(b"%08d" % 0)
        for number in range(40):
            (mount / f"other{number}").write_bytes(b"x" * 3000)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, mount.merged], stdout=subprocess.PIPE)
        try:
            assert writer.stdout is not None and writer.stdout.readline() == b"going\n"
            for number in range(4):
                done = arena.place.fuseunion("snapshot", arena.upper, f"s{number}")
                assert done.returncode == 0, done.stderr
        finally:
            (mount / "stop").touch()
            writer.communicate(timeout=20)
        assert writer.returncode == 0
        for number in range(4):
            kept = arena.root / f".upper.fuseunion-snapshots/s{number}/upper"
            a, b, c = (int((kept / name).read_bytes()) for name in ("a", "b", "c"))
            assert a >= b >= c >= a - 1, (a, b, c)
            assert all((kept / f"other{other}").read_bytes() == b"x" * 3000 for other in range(40))
        mount.stop()
        assert restore.main([str(arena.upper), "s0"]) == 0
        mount.start()
        assert not (mount / "stop").exists()


@pytest.mark.actors("user")
def test_a_pause_ends_by_itself_and_with_who_asked(arena: Arena) -> None:
    lower = arena.lower({})
    with arena.mount(lower) as mount:
        (mount / "file").touch()
        with pauses.paused(mount.daemon) as pause:
            assert pause.lasts
        (mount / "file").stat()
        with pauses.paused(mount.daemon) as pause:
            wait_until(lambda: not pause.lasts, "the daemon to go on", 10)
            (mount / "other").touch()
    with pytest.raises(FileNotFoundError), pauses.paused(mount.daemon):
        pass


@pytest.mark.actors("user")
def test_a_mounted_upper_is_not_restored(arena: Arena) -> None:
    lower = arena.lower({})
    _kept_beside(arena)
    with arena.mount(lower) as mount:
        (mount / "file").touch()
        assert arena.place.fuseunion("snapshot", arena.upper, "one").returncode == 0
        done = arena.place.fuseunion("restore", arena.upper, "one")
        assert done.returncode == ExitCode.BUSY, done


@pytest.mark.parametrize("name", ["", "a/b", "#new", ".hidden", "x" * 300, "a\nb"])
def test_bad_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be the name of a snapshot"):
        snapshot.main([str(tmp_path), name])


@pytest.mark.root
@pytest.mark.actors("root")
def test_snapshots_of_somebody_else_are_not_believed(arena: Arena) -> None:
    upper = arena.directory("upper")
    kept = arena.directory(".upper.fuseunion-snapshots")
    os.chown(kept, 1234, 1234)
    for call in (lambda: snapshot.main([str(upper), "one"]), lambda: restore.main([str(upper), "one"])):
        with pytest.raises(UserError, match="belongs to another user"):
            call()
    kept.rmdir()
    treasure = arena.directory("treasure")
    kept.symlink_to(treasure)
    with pytest.raises(UserError, match="cannot be used"):
        snapshot.main([str(upper), "one"])
    assert not os.listdir(treasure) and stat.S_ISLNK(kept.lstat().st_mode)


@pytest.mark.actors("user")
def test_mistakes(arena: Arena) -> None:
    upper = arena.directory("upper")
    with pytest.raises(UserError, match="has no snapshots"):
        restore.main([str(upper), "one"])
    snapshot.main([str(upper), "one"])
    with pytest.raises(UserError, match="has a snapshot 'one' already"):
        snapshot.main([str(upper), "one"])
    with pytest.raises(UserError, match="has no snapshot 'two'; there are: one"):
        restore.main([str(upper), "two"])


@pytest.mark.root
@pytest.mark.actors("root")
def test_data_is_shared_where_the_filesystem_can(arena: Arena) -> None:
    """xfs: three snapshots of 20 MiB take no space to speak of, and restoring does not either."""
    with disk("xfs", arena.root / "image", arena.root / "disk") as place:
        upper = place.root / "upper"
        upper.mkdir()
        (upper / "big").write_bytes(os.urandom(20 << 20))
        os.sync()
        before = os.statvfs(place.root).f_bfree
        for name in ("one", "two", "three"):
            snapshot.main([str(upper), name])
        with open(upper / "big", "r+b") as file:
            file.write(b"in place")
        restore.main([str(upper), "one"])
        os.sync()
        used = (before - os.statvfs(place.root).f_bfree) * os.statvfs(place.root).f_bsize
        assert used < 4 << 20, used
        assert (upper / "big").stat().st_size == 20 << 20
        assert (upper / "big").read_bytes()[:8] != b"in place"
