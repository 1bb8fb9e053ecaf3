"""Whatever a user does to private objects in a ranch is what the union shows: bit for bit, by whomever it was done."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.ranching import CAPABILITY, MAY_BIND, differences, of_directory, of_union, ranch, raw
from tests.engines.shown import run
from tests.support.acl import ACCESS, DEFAULT, with_named_user
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.layers import Device, Dir, File, Name, Node, Symlink
from tests.support.user import OTHER_GROUP

pytestmark = pytest.mark.actors("root", "user", "userns", "lone", "denied")

Change = Callable[[Path], object]
CHANGES: dict[str, Change] = {}

TEMPLATE: dict[str, Node] = {
    "file": File(b"content", mode=0o644, xattrs={"user.mine": b"value"}),
    "script": File(b"#!/bin/sh", mode=0o755),
    "link": Symlink(target="file"),
    "fifo": Device(mode=0o644),
    "dir": Dir(mode=0o755, xattrs={"user.mine": b"value"}),
    "dir/inner": File(b"inner", mode=0o644),
    "dir/sub/deep": File(b"deep", mode=0o644),
    "empty": Dir(mode=0o755),
}


def change(function: Change) -> Change:
    """Add a change to the list; it is made to a copy of the template in UPPER, and to one in the lower."""
    CHANGES[function.__name__] = function
    return function


def _give(path: Path) -> None:
    """Give something to somebody else, as far as we may, and change nothing else."""
    for owner in ((5, 7), (-1, OTHER_GROUP)):
        try:
            os.chown(path, *owner, follow_symlinks=False)
            return
        except OSError:
            continue


def _touch(path: Path, when: int) -> None:
    os.utime(path, ns=(when, when), follow_symlinks=False)


@change
def owner_of_a_file(d: Path) -> None:
    _give(d / "file")


@change
def owner_of_a_link(d: Path) -> None:
    _give(d / "link")


@change
def owner_of_a_fifo(d: Path) -> None:
    _give(d / "fifo")


@change
def owner_of_a_directory(d: Path) -> None:
    _give(d / "dir")


@change
def owner_and_set_id_bits(d: Path) -> None:
    _give(d / "script")
    (d / "script").chmod(0o6755)
    (d / "dir").chmod(0o3775)


@change
def time_of_a_file(d: Path) -> None:
    _touch(d / "file", 7)


@change
def time_of_a_file_without_its_fraction(d: Path) -> None:
    _touch(d / "file", os.stat(d / "file").st_mtime_ns // 10**9 * 10**9)


@change
def time_of_a_link(d: Path) -> None:
    _touch(d / "link", 7)


@change
def time_of_a_fifo(d: Path) -> None:
    _touch(d / "fifo", 7)


@change
def time_of_a_directory(d: Path) -> None:
    _touch(d / "dir", 7)


@change
def modes(d: Path) -> None:
    for name, mode in (("file", 0o600), ("script", 0o4711), ("fifo", 0o666), ("dir", 0o2750), ("empty", 0o1777)):
        (d / name).chmod(mode)


@change
def attributes(d: Path) -> None:
    os.setxattr(d / "file", "user.mine", b"another")
    os.removexattr(d / "dir", "user.mine")
    os.setxattr(d / "empty", "user.new", b"new")


@change
def access_control_lists(d: Path) -> None:
    for name in ("file", "dir", "fifo"):
        os.setxattr(d / name, ACCESS, with_named_user(os.geteuid()))
    os.setxattr(d / "empty", DEFAULT, with_named_user(os.geteuid()))
    (d / "empty/heir").write_text("")


@change
def attributes_of_a_link(d: Path) -> None:
    try:
        os.setxattr(d / "link", "trusted.mine", b"value", follow_symlinks=False)
    except PermissionError:
        pass  # for root alone


@change
def capabilities(d: Path) -> None:
    try:
        os.setxattr(d / "script", CAPABILITY, MAY_BIND)
    except PermissionError:
        pass  # for root alone, also that of a namespace


@change
def unreadable_files(d: Path) -> None:
    (d / "file").write_text("changed")
    os.setxattr(d / "file", "user.more", b"more")
    (d / "new").write_text("new")
    os.setxattr(d / "new", "user.new", b"new")
    for name, mode in (("file", 0o000), ("script", 0o200), ("new", 0o000), ("dir/inner", 0o111)):
        (d / name).chmod(mode)


@change
def unreadable_files_with_two_names(d: Path) -> None:
    os.link(d / "file", d / "0")
    os.link(d / "file", d / "dir/sub/z")
    (d / "file").chmod(0)


@change
def closed_directories(d: Path) -> None:
    (d / "dir/sub/deep").write_text("changed")
    (d / "dir/sub/new").write_text("new")
    os.setxattr(d / "dir/sub", "user.mine", b"value")
    os.symlink("nowhere", d / "dir/sub/link")
    os.link(d / "file", d / "dir/sub/linked")
    (d / "dir/sub").chmod(0)
    (d / "dir/inner").unlink()
    (d / "dir").chmod(0o555)


@change
def closed_directories_in_one_another(d: Path) -> None:
    os.link(d / "dir/sub/deep", d / "dir/sub/linked")
    for name, mode in (("dir/sub", 0o600), ("dir", 0o000), ("empty", 0o300)):
        (d / name).chmod(mode)


@change
def one_file_in_two_closed_directories(d: Path) -> None:
    (d / "dir/new").write_text("new")
    os.link(d / "dir/new", d / "empty/new")
    os.link(d / "file", d / "dir/sub/z")
    os.link(d / "file", d / "empty/0")
    for name in ("dir/sub", "dir", "empty"):
        (d / name).chmod(0)


@change
def a_directory_in_the_place_of_a_file_and_back(d: Path) -> None:
    (d / "file").unlink()
    (d / "file").mkdir()
    (d / "file/inner").write_text("inner")
    shutil.rmtree(d / "file")
    (d / "file").write_text("content")


@change
def a_file_in_the_place_of_a_directory_and_back(d: Path) -> None:
    shutil.rmtree(d / "dir")
    (d / "dir").write_text("file")
    (d / "dir").unlink()
    (d / "dir").mkdir()
    (d / "dir/inner").write_text("another")


@change
def kinds_that_change(d: Path) -> None:
    for name in ("file", "script", "link", "fifo", "empty"):
        shutil.move(d / name, d / f"old-{name}")
    (d / "file").symlink_to("script")
    os.mkfifo(d / "script", 0o640)
    (d / "link").mkdir()
    (d / "fifo").write_text("file")
    os.rename(d / "dir", d / "empty")


@change
def what_was_moved(d: Path) -> None:
    os.rename(d / "dir", d / "moved")
    os.rename(d / "file", d / "moved/sub/file")
    os.rename(d / "fifo", d / "moved/fifo")


def _describe(place: str) -> dict[Name, Node]:
    return {f"{case}/{place}/{name}": node for case in CHANGES for name, node in TEMPLATE.items()}


def _ranch(arena: Arena, lower: Path) -> Path:
    """With private copies of all that there is, so that nothing in it is a link of the ranch."""
    copies = () if arena.actor.role is Role.DENIED else ("--copy", "*")
    return ranch(arena, *copies, lower)


@pytest.mark.parametrize("synced", [False, True])
def test_every_change(arena: Arena, synced: bool) -> None:
    """To objects of the lower and of UPPER; and once it is collected, nothing is left to collect."""
    lower = arena.lower(_describe("lower"))
    merged = _ranch(arena, lower)
    for path, node in _describe("upper").items():
        _make(merged / os.fsdecode(path), node)
    run(arena, "umount", merged)
    merged = _ranch(arena, lower)
    for name, function in CHANGES.items():
        for place in ("lower", "upper"):
            function(merged / name / place)
    (merged / "new").write_text("new")
    merged.chmod(0o711)
    os.setxattr(merged, "user.mine", b"root")
    _give(merged)
    _touch(merged, 7)
    expected = of_directory(merged)
    if synced:
        run(arena, "sync", merged)
        assert differences(expected, of_union(lower, arena.upper)) == ""
        before = raw(arena.upper)
    run(arena, "umount", merged)
    assert differences(expected, of_union(lower, arena.upper)) == ""
    if synced:
        assert raw(arena.upper) == before, "collecting again changed UPPER"
    before = raw(arena.upper)
    merged = _ranch(arena, lower)
    assert differences(expected, of_directory(merged)) == "", "the next ranch shows something else"
    run(arena, "umount", merged)
    assert raw(arena.upper) == before, "a look changed UPPER"


def _make(path: Path, node: Node) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    node.make(os.fsencode(path))
    for name, value in node.xattrs.items():
        os.setxattr(path, name, value)
    if node.mode is not None and not stat.S_ISLNK(os.lstat(path).st_mode):
        path.chmod(node.mode)


@pytest.mark.root
@pytest.mark.actors("user")
def test_a_group_that_was_kept_and_is_given_up(arena: Arena) -> None:
    """A file of another group of the user keeps it in the ranch; giving it to one of the own groups is a change."""
    lower = arena.lower(
        {"file": File(b"x", gid=OTHER_GROUP), "dir": Dir(gid=OTHER_GROUP), "kept": File(gid=OTHER_GROUP)}
    )
    merged = _ranch(arena, lower)
    assert {os.lstat(merged / name).st_gid for name in ("file", "dir", "kept")} == {OTHER_GROUP}
    for name in ("file", "dir"):
        os.chown(merged / name, -1, os.getegid())
    run(arena, "umount", merged)
    found = of_union(lower, arena.upper)
    assert found["/file"].gid == found["/dir"].gid == os.getegid() and found["/kept"].gid == OTHER_GROUP
    assert sorted(os.listdir(arena.upper)) == ["dir", "file"]
