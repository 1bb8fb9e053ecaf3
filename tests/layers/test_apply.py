"""`fuseunion commit` and `apply`: what a mount shows, as a directory; and killed at every change."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layers.commands import done, fuseunion
from tests.support.arena import Arena
from tests.support.crash import before_changes, run_until_change
from tests.support.layers import OLD, Dir, File, Link, Symlink, build
from tests.support.mounts import escaped
from tests.support.tree import SEEN, Tree, assert_same, differences, snapshot

LOWER = {
    "a": File(b"a", xattrs={"user.x": b"1"}),
    "gone/x": File(b"x"),
    "dir/keep": File(b"keep"),
    "dir/change": File(b"change", mode=0o640),
    "dir/t1": File(b"twins"),
    "t2": Link("dir/t1"),
    "t3": Link("dir/t1"),
    "to-file/x": File(b"x"),
    "to-dir": File(b"x"),
    "link": Symlink("a"),
}


def change(merged: Path) -> None:
    shutil.rmtree(merged / "gone")
    (merged / "dir/change").write_bytes(b"changed")
    (merged / "dir").chmod(0o711)
    (merged / "t2").write_bytes(b"both")  # and with it dir/t1 and t3, which nobody looks up
    shutil.rmtree(merged / "to-file")
    (merged / "to-file").write_bytes(b"file")
    (merged / "to-dir").unlink()
    (merged / "to-dir/deep").mkdir(parents=True)
    (merged / "to-dir/deep/f").write_bytes(b"f")
    os.link(merged / "to-dir/deep/f", merged / "dir/f2")
    (merged / "closed").mkdir(mode=0o500)
    os.setxattr(merged / "a", "user.x", b"2")
    os.utime(merged / "dir", ns=(OLD, OLD))


@pytest.mark.actors("root", "user", "userns")
def test_equal_to_a_copy_of_the_mount(arena: Arena) -> None:
    lower = build(arena.root / "lower", LOWER)
    with arena.mount(lower) as mount:
        change(mount.merged)
    left = sorted(path.name for path in arena.root.iterdir())
    # Names of a hard-linked file that nobody has looked up are known to the link index alone.
    done("commit", escaped(lower), arena.upper, arena.root / "new")
    done("apply", arena.upper, lower)
    done("apply", "--forget", lower)
    applied = snapshot(lower)
    with arena.mount(lower) as mount:
        assert_same(applied, snapshot(mount.merged), "the upper over what it was pushed into")
    assert_same(applied, snapshot(arena.root / "new"), "commit and apply")
    assert sorted(path.name for path in arena.root.iterdir()) == sorted([*left, "new"])


@pytest.mark.actors("root", "user", "userns")
def test_commit_shows_what_the_mount_shows(arena: Arena) -> None:
    lower = arena.lower(LOWER)
    with arena.mount(lower) as mount:
        change(mount.merged)
    done("commit", escaped(lower), arena.upper, arena.root / "new")
    with arena.mount(lower) as mount:
        assert_same(snapshot(mount.merged), snapshot(arena.root / "new"), "commit")


@pytest.mark.actors("root", "user")
def test_dry_run_and_undo(arena: Arena) -> None:
    lower = build(arena.root / "lower", LOWER)
    with arena.mount(lower) as mount:
        change(mount.merged)
    before = snapshot(lower)
    expected = ["M a  (attributes)", "A closed/", "M dir/  (mode 0755 -> 0711)", "D gone/"]
    told = done("apply", "--dry-run", arena.upper, lower).splitlines()
    assert [line for line in told if line in expected] == expected
    assert fuseunion("apply", "--undo", lower).code == 3
    assert_same(before, snapshot(lower), "--dry-run")
    assert f"take them back with: fuseunion apply --undo '{lower}'" in done("apply", arena.upper, lower)
    assert (lower / "to-dir/deep/f").read_bytes() == b"f"
    done("apply", "--undo", lower)
    assert_same(before, snapshot(lower), "--undo")
    assert fuseunion("apply", "--undo", lower).code == 3
    done("apply", arena.upper, lower)
    done("apply", arena.upper, lower)  # once more changes nothing
    assert (lower / "to-dir/deep/f").read_bytes() == b"f"
    done("apply", "--forget", lower)
    (lower / "closed").chmod(0o700)


def _view(tree: Tree) -> dict[bytes, object]:
    return {path: tuple(getattr(entry, field) for field in SEEN if field != "links") for path, entry in tree.items()}


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory where nothing has to be synced."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


@before_changes(7)
@pytest.mark.parametrize("then", ["again", "undo"])
def test_killed(memory: Path, then: str, every: int) -> None:
    """Killed before its changes: given again it comes to its end, and --undo gives back what was there."""
    upper = build(
        memory / "upper",
        {"a": File(b"new"), "d/new": File(b"n"), "d": Dir(mode=0o700), "n/x": File(b"x"), "to-dir/y": File(b"y")},
    )
    os.mknod(upper / "gone", stat.S_IFCHR, 0) if os.geteuid() == 0 else (upper / ".wh.gone").touch()
    original = build(
        memory / "original", {"a": File(b"a"), "d/old": File(b"o"), "gone/x": File(b"x"), "to-dir": File(b"f")}
    )
    lower = memory / "lower"
    started = 0
    number, survived = len(then) % every, False
    after: dict[bytes, object] | None = None
    before = snapshot(original)
    while not survived:
        subprocess.run(["cp", "-a", original, lower], check=True)
        survived = run_until_change(number, lambda: _quiet("apply", upper, lower))
        journal = (memory / ".lower.fuseunion-apply").exists()
        started += journal and not survived
        if then == "undo" and journal:
            done("apply", "--undo", lower)
            assert not differences(before, snapshot(lower)), f"undone after a death before change {number}"
        else:
            done("apply", upper, lower)
            now = _view(snapshot(lower))
            after = after or now
            assert now == after, f"completed after a death before change {number}"
            done("apply", "--forget", lower)
        shutil.rmtree(lower)
        number += every
    assert started > 10
    assert not [path.name for path in memory.iterdir() if "fuseunion" in path.name]


def _quiet(*arguments: str | Path) -> None:
    assert fuseunion(*arguments).code == 0


@pytest.mark.actors("user")
def test_what_somebody_made_meanwhile_stays(arena: Arena) -> None:
    lower, upper = build(arena.root / "lower", {"a": File(b"a")}), build(arena.upper, {"n": File(b"n")})
    done("apply", upper, lower)
    (lower / "n").rename(lower / "moved")
    said = fuseunion("apply", "--undo", lower)
    assert said.code == 1 and (lower / "moved").read_bytes() == b"n"
    (lower / "moved").rename(lower / "n")
    done("apply", "--undo", lower)
    assert os.listdir(lower) == ["a"]


@pytest.mark.actors("user")
def test_places_that_are_refused(arena: Arena) -> None:
    lower, upper = arena.lower({"a": File(b"a")}), arena.directory("upper")
    for new in (lower / "new", upper / "new", lower, arena.root):
        said = fuseunion("commit", escaped(lower), upper, new)
        assert said.code == 3 and len(said.err.splitlines()) == 1, said
    (arena.root / ".lower0.fuseunion-apply").symlink_to("/etc")
    said = fuseunion("apply", upper, lower)
    assert said.code == 3 and "must be yours alone" in said.err


@pytest.mark.actors("user")
def test_messages_name_where_it_lies(arena: Arena) -> None:
    """What cannot be read is in the lower, not in the upper; a lower of somebody else is no upper."""
    lower, upper = arena.lower({"d/closed": File(b"a", mode=0)}), arena.directory("upper")
    said = fuseunion("commit", escaped(lower), upper, arena.root / "new")
    assert said.code == 1 and f"'{lower}/d/closed': Permission denied" in said.err
    said = fuseunion("apply", upper, "/usr/lib")
    assert said.code == 3 and "lower directory '/usr/lib' belongs to another user (0)" in said.err
    assert len(said.err.splitlines()) == 1 and "--read-only" not in said.err
