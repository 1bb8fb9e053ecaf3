"""What is one object in the upper is one inode, through every name, however the names came to be.

Marks are kept per name or per object, by us and by others; what the disk says decides.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import libc
from tests.support.arena import Arena
from tests.support.layers import File, Link, Name, Node
from tests.support.mounts import FuseunionMount


def _append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def _assert_one_file(names: list[Path], number: int | None = None) -> None:
    """All names show one inode; what is written through each is read through all."""
    statuses = {(path.stat().st_ino, path.stat().st_nlink) for path in names}
    assert len(statuses) == 1, statuses
    assert number in (None, names[0].stat().st_ino)
    contents = names[0].read_bytes()
    for path in names:
        contents += b"+"
        _append(path, b"+")
        assert {other.read_bytes() for other in names} == {contents}
    for path in names:
        with os.scandir(path.parent) as entries:
            assert {entry.inode() for entry in entries if entry.name == path.name} == {names[0].stat().st_ino}


@pytest.mark.parametrize("first", [0, 1])
def test_a_name_that_a_plain_tool_made(arena: Arena, first: int) -> None:
    """`ln` in the unmounted upper, to a copy that has a mark; whichever name is looked up first."""
    lower = arena.lower({"f": File(b"lower"), "d/x": File()})
    with arena.mount(lower) as mount:
        _append(mount / "f", b" changed")
        (mount / "d" / "y").touch()
    os.link(arena.upper / "f", arena.upper / "d/g")
    numbers = set()
    for order in (first, 1 - first):
        with arena.mount(lower) as mount:
            names = [mount / "f", mount / "d/g"]
            numbers.add(names[order].stat().st_ino)
            _assert_one_file(names)
    assert len(numbers) == 1, "the number depends on which name is looked up first"


@pytest.mark.actors("root")
def test_a_name_that_the_kernel_made(arena: Arena) -> None:
    """`ln` through the kernel's overlayfs."""
    lower = arena.lower({"f": File(b"lower")})
    with arena.mount(lower) as mount:
        _append(mount / "f", b" changed")
    with arena.kernel(lower, upper=arena.upper) as merged:
        os.link(merged / "f", merged / "g")
    with arena.mount(lower) as mount:
        _assert_one_file([mount / "f", mount / "g"])
        (mount / "f").unlink()
        assert (mount / "g").read_bytes() == b"lower changed++"
        assert (mount / "g").stat().st_nlink == 1


def test_a_lower_path_that_is_too_long_for_a_mark(arena: Arena) -> None:
    """The number of the lower is kept in the link index, and goes from there with the last name."""
    deep = "/".join(letter * 200 for letter in "abcdef")
    lower = arena.lower({f"{deep}/f": File(b"lower")})
    with arena.mount(lower) as mount:
        number = (mount / deep / "f").stat().st_ino
        os.link(mount / deep / "f", mount / "g")
        _assert_one_file([mount / deep / "f", mount / "g"], number)
        for _ in range(2):
            mount.stop()
            mount.start()
            _assert_one_file([mount / "g", mount / deep / "f"], number)
        (mount / deep / "f").rename(mount / "moved")
        mount.stop()
        mount.start()
        _assert_one_file([mount / "moved", mount / "g"], number)
        (mount / "moved").unlink()
        assert (mount / "g").stat().st_nlink == 1
        (mount / "g").unlink()
        mount.stop()
        work = arena.root / ".upper.fuseunion-work"
        assert not work.exists() or os.listdir(work / "links") == []
        mount.start()


def test_no_space_for_a_whole_mark(arena: Arena) -> None:
    """The attributes of the copy are full: its number is kept in the link index."""
    lower = arena.lower({"directory/with/a/name/that/takes/some/space/f": File(b"lower")})
    path = "directory/with/a/name/that/takes/some/space/f"
    with arena.mount(lower) as mount:
        number = (mount / path).stat().st_ino
        _append(mount / path, b" changed")
    _fill_attributes(arena.upper / path)
    with arena.mount(lower) as mount:
        assert (mount / path).stat().st_ino == number
        os.link(mount / path, mount / "g")
        _assert_one_file([mount / path, mount / "g"], number)
        mount.stop()
        mount.start()
        _assert_one_file([mount / "g", mount / path], number)


def _fill_attributes(path: Path) -> None:
    """Leave no space for a longer attribute; where there is always more, the test holds all the more."""
    for size in (60_000, 2000, 1000, 500, 200, 100, 50, 20, 10, 5, 2, 1):
        for number in range(100):
            try:
                os.setxattr(path, f"user.{size}.{number}", b"x" * size)
            except OSError:
                break


def test_a_name_in_a_closed_directory(arena: Arena) -> None:
    """A hard link works while the directory of another name of it, the first one known, is closed."""
    lower = arena.lower({"q/a": File(b"lower"), "other": File(b"other")})
    with arena.mount(lower) as mount:
        _append(mount / "q/a", b" changed")
        os.link(mount / "q/a", mount / "b")
        with open(mount / "q/a", "rb") as held:
            (mount / "q").chmod(0)
            assert os.fstat(held.fileno()).st_nlink == 2
            assert held.read() == b"lower changed"
            (mount / "b").chmod(0o640)
            _append(mount / "b", b"!")
            os.setxattr(mount / "b", "user.x", b"1")
            os.link(mount / "b", mount / "c")
            os.truncate(mount / "b", 5)
            (mount / "b").rename(mount / "d")
            assert (mount / "d").read_bytes() == b"lower"
            assert (mount / "c").stat().st_nlink == 3
        (mount / "q").chmod(0o755)
        _assert_one_file([mount / "q/a", mount / "c", mount / "d"])


def test_what_is_replaced_while_another_name_is_out_of_reach(arena: Arena) -> None:
    """`mv m/n m/a`, while the other name of a lies in a closed directory: done, and nothing of it is lost."""
    lower = arena.lower({"x": File()})
    with arena.mount(lower) as mount:
        (mount / "q").mkdir()
        (mount / "a").write_bytes(b"a")
        os.link(mount / "a", mount / "q/a")
        (mount / "r").write_bytes(b"r")
        os.link(mount / "r", mount / "q/r")
        (mount / "n").write_bytes(b"n")
        (mount / "q").chmod(0)
        (mount / "n").rename(mount / "a")
        assert (mount / "a").read_bytes() == b"n"
        _append(mount / "a", b"!")
        (mount / "r").unlink()
        assert not (mount / "r").exists()
        mount.stop()
        mount.start()
        assert (mount / "a").read_bytes() == b"n!"
        (mount / "q").chmod(0o755)
        assert (mount / "q/a").read_bytes() == b"a"
        assert (mount / "q/r").read_bytes() == b"r"
        assert (mount / "q/a").stat().st_nlink == 1


# -- random link groups, made by everybody -----------------------------------------------------------------------------

_LOWER: dict[Name, Node] = {
    **{f"{directory}/{name}": File(f"{directory}{name}".encode()) for directory in "xyz" for name in "ab"},
    "x/l1": File(b"linked"),
    "y/l2": Link("x/l1"),
    "z/l3": Link("x/l1"),
}


@contextmanager
def _plain(arena: Arena, lower: Path) -> Iterator[Path]:
    yield arena.upper


@contextmanager
def _kernel(arena: Arena, lower: Path) -> Iterator[Path]:
    with arena.kernel(lower, upper=arena.upper) as mount:
        yield mount.merged


@contextmanager
def _fuse_overlayfs(arena: Arena, lower: Path) -> Iterator[Path]:
    merged, work = arena.directory("other-merged"), arena.directory("other-work")
    options = f"lowerdir={lower},upperdir={arena.upper},workdir={work}"
    subprocess.run(["fuse-overlayfs", "-o", options, str(merged)], check=True, capture_output=True)
    try:
        yield merged
    finally:
        libc.umount(str(merged))


@contextmanager
def _ours(arena: Arena, lower: Path) -> Iterator[Path]:
    with arena.mount(lower) as mount:
        yield mount.merged


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".wh."))


def _change(root: Path, dice: random.Random) -> None:
    """One change to a random file, as any program could make it."""
    files = _files(root)
    directories = [path for path in root.iterdir() if path.is_dir()]
    if not files or not directories:
        return
    path, other = dice.choice(files), dice.choice(files)
    new = dice.choice(directories) / f"n{dice.randrange(1000)}"
    match dice.randrange(5):
        case 0:
            _append(path, b"+")
        case 1 | 2 if not new.exists():
            os.link(path, new)
        case 3 if not new.exists():
            path.rename(new)
        case 4 if path.stat().st_ino != other.stat().st_ino:
            path.rename(other) if dice.random() < 0.5 else path.unlink()


def _check(mount: FuseunionMount, upper: Path, dice: random.Random) -> dict[str, int]:
    """Number and object on disk agree for every name; returns the numbers."""
    files = [str(path.relative_to(mount.merged)) for path in _files(mount.merged)]
    dice.shuffle(files)
    numbers: dict[str, int] = {}
    by_object: dict[tuple[int, int], set[int]] = {}
    for name in files:
        numbers[name] = (mount / name).stat().st_ino
        if (upper / name).exists():
            real = os.lstat(upper / name)
            by_object.setdefault((real.st_dev, real.st_ino), set()).add(numbers[name])
    assert all(len(shown) == 1 for shown in by_object.values()), by_object
    assert len({number for shown in by_object.values() for number in shown}) == len(by_object)
    for name in files:
        same = [other for other in files if numbers[other] == numbers[name]]
        assert (mount / name).stat().st_nlink >= len(same)
        assert {(mount / other).read_bytes() for other in same} == {(mount / name).read_bytes()}
    # A write through any name is read through all of them, and through no other.
    name = dice.choice(files)
    _append(mount / name, b"!")
    for other in files:
        assert (mount / other).read_bytes().endswith(b"!") == (numbers[other] == numbers[name]), (name, other)
    for other in files:
        if numbers[other] == numbers[name]:
            os.truncate(mount / other, (mount / other).stat().st_size - 1)
            break
    return numbers


@pytest.mark.actors("root")
@pytest.mark.parametrize("seed", range(6))
def test_random_link_groups(arena: Arena, seed: int) -> None:
    """One object is one inode, no matter who made the names, and mounts agree on its number in any order of looking."""
    dice = random.Random(seed)
    lower = arena.lower(_LOWER)
    arena.upper.mkdir()
    for _ in range(6):
        tool = dice.choice([_plain, _kernel, _fuse_overlayfs, _ours])
        with tool(arena, lower) as root:
            for _ in range(dice.randrange(1, 12)):
                _change(root, dice)
        with arena.mount(lower) as mount:
            numbers = _check(mount, arena.upper, dice)
        with arena.mount(lower) as mount:
            assert _check(mount, arena.upper, dice) == numbers
