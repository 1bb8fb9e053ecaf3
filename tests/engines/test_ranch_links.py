"""Objects with several names: what is one in the ranch is one in the union, in whichever order names are collected."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.ranching import differences, of_directory, of_union, ranch
from tests.engines.shown import run
from tests.support.arena import Arena
from tests.support.layers import Device, Dir, File, Link, Name, Node, Symlink

pytestmark = pytest.mark.actors("root", "userns", "denied")

LOWER: dict[Name, Node] = {
    "one": File(b"lower", mode=0o644),
    "dir/two": Link(target="one"),
    "dir/three": Link(target="one"),
    "symlink": Symlink(target="one"),
    "dir/symlink": Link(target="symlink"),
    "fifo": Device(mode=0o644),
    "dir/fifo": Link(target="fifo"),
    "empty": Dir(mode=0o755),
}

Change = Callable[[Path], object]


def _groups(arena: Arena, lower: Path) -> dict[str, list[str]]:
    """The names of each file, by the first of them."""
    groups: dict[str, list[str]] = {}
    for path, facts in of_union(lower, arena.upper).items():
        if facts.kind != "dir":
            groups.setdefault(facts.links, []).append(path)
    return groups


def _make(directory: Path) -> None:
    """Three names each of a file, a symbolic link and a fifo."""
    (directory / "sub").mkdir(parents=True)
    (directory / "empty").mkdir()
    (directory / "a").write_text("upper")
    os.symlink("a", directory / "s")
    os.mkfifo(directory / "p")
    for name in ("a", "s", "p"):
        os.link(directory / name, directory / f"{name}2", follow_symlinks=False)
        os.link(directory / name, directory / f"sub/{name}3", follow_symlinks=False)


def _touch(path: Path) -> None:
    os.utime(path, (5, 5), follow_symlinks=False)


def _cp_p(path: Path) -> None:
    """Replace a file by a copy that cannot be told from it."""
    shutil.copy2(path, path.with_name("copy"))
    os.replace(path.with_name("copy"), path)


CHANGES: list[tuple[Change, list[list[str]]]] = [
    (lambda m: os.rename(m / "a2", m / "z"), [["/a", "/sub/a3", "/z"]]),
    (lambda m: os.rename(m / "a2", m / "0"), [["/0", "/a", "/sub/a3"]]),
    (lambda m: os.link(m / "a", m / "sub/0"), [["/a", "/a2", "/sub/0", "/sub/a3"]]),
    (lambda m: os.rename(m / "sub", m / "bus"), [["/a", "/a2", "/bus/a3"]]),
    (lambda m: (m / "a").unlink(), [["/a2", "/sub/a3"]]),
    (lambda m: (m / "a").write_text("changed"), [["/a", "/a2", "/sub/a3"]]),
    (lambda m: [(m / "a").write_text("changed"), os.rename(m / "a2", m / "z")], [["/a", "/sub/a3", "/z"]]),
    (lambda m: _touch(m / "a"), [["/a", "/a2", "/sub/a3"]]),
    (lambda m: _touch(m / "s"), [["/s", "/s2", "/sub/s3"]]),
    (lambda m: os.rename(m / "s2", m / "z"), [["/s", "/sub/s3", "/z"]]),
    (lambda m: (m / "p").chmod(0o600), [["/p", "/p2", "/sub/p3"]]),
    (lambda m: os.rename(m / "p2", m / "z"), [["/p", "/sub/p3", "/z"]]),
    (lambda m: _cp_p(m / "a2"), [["/a", "/sub/a3"], ["/a2"]]),
    (lambda m: [_cp_p(m / "a2"), os.link(m / "a2", m / "z")], [["/a", "/sub/a3"], ["/a2", "/z"]]),
    (lambda m: [(m / "a").unlink(), os.link(m / "a2", m / "a")], [["/a", "/a2", "/sub/a3"]]),
    (lambda m: [os.rmdir(m / "empty"), os.link(m / "a", m / "empty")], [["/a", "/a2", "/empty", "/sub/a3"]]),
    (
        lambda m: [(m / "b").write_text("b"), os.link(m / "b", m / "c"), os.replace(m / "b", m / "a")],
        [["/a", "/c"], ["/a2", "/sub/a3"]],
    ),
]


@pytest.mark.parametrize("synced", [False, True])
def test_names_of_upper_files(arena: Arena, synced: bool) -> None:
    """Whatever was done to one name, those that are one file in the ranch are one in the union, and no others."""
    lower = arena.lower(LOWER)
    merged = ranch(arena, lower)
    for number in range(len(CHANGES)):
        _make(merged / f"case{number}")
    run(arena, "umount", merged)
    merged = ranch(arena, lower)
    for number, (change, _) in enumerate(CHANGES):
        change(merged / f"case{number}")
    expected = {path: facts for path, facts in of_directory(merged).items() if path.startswith("/case")}
    if synced:
        run(arena, "sync", merged)
        before = of_union(lower, arena.upper)
    run(arena, "umount", merged)
    found = of_union(lower, arena.upper)
    if synced:
        assert differences(before, found) == "", "collecting again changed something"
    assert differences(expected, {path: facts for path, facts in found.items() if path.startswith("/case")}) == ""
    for number, (_, wanted) in enumerate(CHANGES):
        for names in wanted:
            paths = [f"/case{number}{name}" for name in names]
            first = found[paths[0]].links
            assert [path for path, facts in found.items() if facts.links == first] == paths, f"case {number}"


@pytest.mark.parametrize("synced", [False, True])
def test_a_new_name_in_any_order(arena: Arena, synced: bool) -> None:
    """One name stays, one is moved, one is new: whichever comes first in the directory."""
    lower = arena.lower(LOWER)
    orders = list(itertools.permutations(("0", "m", "z")))
    merged = ranch(arena, lower)
    for order in orders:
        directory = merged / "".join(order)
        directory.mkdir()
        (directory / order[0]).write_text("x")
        os.link(directory / order[0], directory / "old")
    run(arena, "umount", merged)
    merged = ranch(arena, lower)
    for order in orders:
        directory = merged / "".join(order)
        os.rename(directory / "old", directory / order[1])
        os.link(directory / order[1], directory / order[2])
    if synced:
        run(arena, "sync", merged)
    run(arena, "umount", merged)
    groups = _groups(arena, lower)
    for order in orders:
        names = [f"/{''.join(order)}/{name}" for name in ("0", "m", "z")]
        assert groups[names[0]] == names


def test_names_of_lower_files_that_are_copied(arena: Arena) -> None:
    """With --copy a file of the lower with several names is one file in the ranch, and stays one in the union."""
    lower = arena.lower(LOWER)
    merged = ranch(arena, "--copy", "*", lower)
    assert os.path.samefile(merged / "one", merged / "dir/two")
    run(arena, "umount", merged)
    assert os.listdir(arena.upper) == [], "nothing was changed"
    merged = ranch(arena, "--copy", "*", lower)
    os.rename(merged / "dir/two", merged / "dir/moved")
    os.link(merged / "one", merged / "0")
    run(arena, "sync", merged)
    assert _groups(arena, lower)["/0"] == ["/0", "/dir/moved", "/dir/three", "/one"]
    (merged / "0").write_text("changed")
    run(arena, "umount", merged)
    assert _groups(arena, lower)["/0"] == ["/0", "/dir/moved", "/dir/three", "/one"]
    assert of_union(lower, arena.upper)["/dir/three"].content == "changed"
    merged = ranch(arena, "--copy", "*", lower)
    _cp_p(merged / "one")
    run(arena, "umount", merged)
    assert _groups(arena, lower)["/0"] == ["/0", "/dir/moved", "/dir/three"]


def test_names_that_were_separated(arena: Arena) -> None:
    """A file of the lower whose names are two files in the ranch is two in the union, though both are as it was."""
    lower = arena.lower(LOWER)
    merged = ranch(arena, "--copy", "*", lower)
    _cp_p(merged / "dir/two")
    run(arena, "sync", merged)
    run(arena, "umount", merged)
    groups = _groups(arena, lower)
    assert groups["/dir/two"] == ["/dir/two"] and groups["/dir/three"] == ["/dir/three", "/one"]


@pytest.mark.actors("root", "userns")
def test_names_that_were_separated_from_links(arena: Arena) -> None:
    """The same where the other names are links, and where the file was copied up for another name meanwhile."""
    lower = arena.lower(LOWER | {"single": File(b"single")})
    merged = ranch(arena, lower)
    _cp_p(merged / "dir/two")
    for name in ("single", "one"):
        os.link(merged / name, merged / f"0{name}", follow_symlinks=False)
    run(arena, "sync", merged)
    _cp_p(merged / "0single")
    _cp_p(merged / "0one")
    run(arena, "promote", merged, "dir/three")
    run(arena, "umount", merged)
    groups = _groups(arena, lower)
    for name in ("/dir/two", "/0single", "/single", "/0one"):
        assert groups[name] == [name]
    assert groups["/dir/three"] == ["/dir/three", "/one"], "what was promoted and not changed is what it was"


def test_symbolic_links_and_fifos_of_the_lower(arena: Arena) -> None:
    """They are made in the ranch with all their names, so that a change is one of all."""
    lower = arena.lower(LOWER)
    merged = ranch(arena, lower)
    assert os.lstat(merged / "symlink").st_nlink == os.lstat(merged / "fifo").st_nlink == 2
    _touch(merged / "symlink")
    (merged / "dir/fifo").chmod(0o600)
    run(arena, "umount", merged)
    found = of_union(lower, arena.upper)
    assert found["/symlink"].links == found["/dir/symlink"].links == "/dir/symlink"
    assert found["/fifo"].links == found["/dir/fifo"].links == "/dir/fifo"
    assert found["/symlink"].mtime == 5 * 10**9 and found["/fifo"].mode == 0o600


@pytest.mark.actors("root", "userns")
def test_another_name_for_a_link(arena: Arena) -> None:
    """A link of the ranch with two names stands for a file with two names, which is copied up once."""
    lower = arena.lower(LOWER | {"single": File(b"single")})
    merged = ranch(arena, lower)
    os.link(merged / "single", merged / "dir/0", follow_symlinks=False)
    os.link(merged / "one", merged / "0", follow_symlinks=False)
    os.rename(merged / "dir/two", merged / "moved")
    os.link(merged / "moved", merged / "empty/linked", follow_symlinks=False)
    run(arena, "sync", merged)
    run(arena, "umount", merged)
    groups = _groups(arena, lower)
    assert groups["/dir/0"] == ["/dir/0", "/single"]
    assert groups["/0"] == ["/0", "/dir/three", "/one"]
    assert groups["/empty/linked"] == ["/empty/linked", "/moved"], "a link that was moved is a copy"


@pytest.mark.actors("root", "userns")
def test_promoted_together(arena: Arena) -> None:
    """The names of a file that one command promotes are one private copy; two commands make two."""
    lower = arena.lower(LOWER)
    merged = ranch(arena, lower)
    run(arena, "promote", "--recursive", merged, "dir")
    assert os.path.samefile(merged / "dir/two", merged / "dir/three")
    run(arena, "promote", merged, "one")
    assert not os.path.samefile(merged / "dir/two", merged / "one")
    shutil.copyfile(merged / "one", merged / "copy-of-one")
    os.rename(merged / "copy-of-one", merged / "dir/copy")
    run(arena, "sync", merged)
    assert sorted(os.listdir(arena.upper)) == ["dir"] and os.listdir(arena.upper / "dir") == ["copy"]
    (merged / "dir/two").write_text("changed")
    run(arena, "umount", merged)
    groups = _groups(arena, lower)
    assert groups["/dir/three"] == ["/dir/three", "/dir/two"] and groups["/one"] == ["/one"]


@pytest.mark.actors("root", "userns")
def test_a_copy_of_a_link_is_not_promoted_into_its_file(arena: Arena) -> None:
    """`cp -a` copies a link of the ranch: that stands for another file, though it has the same text."""
    lower = arena.lower(LOWER)
    merged = ranch(arena, lower)
    os.symlink(os.readlink(merged / "one"), merged / "copy")
    run(arena, "promote", merged, "one", "dir/two", "copy")
    assert os.path.samefile(merged / "dir/two", merged / "one")
    assert not os.path.samefile(merged / "copy", merged / "one")
    run(arena, "umount", merged)
    assert _groups(arena, lower)["/copy"] == ["/copy"]


@pytest.mark.actors("denied")
def test_a_name_outside_of_the_ranch(arena: Arena) -> None:
    """It is waited for and never comes."""
    lower = arena.lower(LOWER)
    merged = ranch(arena, lower)
    (merged / "a").write_text("a")
    os.link(merged / "a", merged / "b")
    os.link(merged / "a", arena.root / "outside")
    run(arena, "umount", merged)
    assert _groups(arena, lower)["/a"] == ["/a", "/b"]
