"""What is kept of lower files with names outside of the lowers goes with the names that the union shows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fuseunion.steps import in_one_piece
from tests.support.arena import Arena
from tests.support.crash import run_until_change
from tests.support.inprocess import InProcess, in_process
from tests.support.layers import File, Link, Name, Node
from tests.support.waiting import wait_until

COUNT = 2000
SIZE = 8192


def _linked_from_outside(arena: Arena, description: dict[Name, Node]) -> Path:
    """A lower, each file of which has one more name in a directory beside it."""
    lower = arena.lower(description)
    cache = arena.directory("cache")
    for number, path in enumerate(sorted(path for path in lower.rglob("*") if path.is_file())):
        os.link(path, cache / str(number))
    arena.guard(lower)
    return lower


def _kept(arena: Arena) -> tuple[int, int]:
    """Inodes and bytes in the default work directory."""
    inodes, size = set(), 0
    for directory, names, files in os.walk(arena.root / ".upper.fuseunion-work"):
        for name in names + files:
            try:
                st = os.lstat(os.path.join(directory, name))
            except FileNotFoundError:
                continue  # given back just now
            if st.st_ino not in inodes and name in files:
                size += st.st_size
            inodes.add(st.st_ino)
    return len(inodes), size


@pytest.mark.actors("user")
def test_removed_names_leave_nothing(arena: Arena) -> None:
    """2,000 files that are written to and removed: no data and no inode is left."""
    lower = _linked_from_outside(arena, {f"d{number % 20}/{number}": File(b"x" * SIZE) for number in range(COUNT)})
    with arena.mount(lower) as mount:
        for number in range(COUNT):
            path = mount / f"d{number % 20}/{number}"
            if number % 2:
                with open(path, "ab") as file:
                    file.write(b"!")
            path.unlink()
        wait_until(lambda: _kept(arena)[1] < COUNT, "the data of files without names to be given back", 40)
        inodes, _ = _kept(arena)
        assert inodes < 10, inodes
    assert not (arena.root / ".upper.fuseunion-work").exists()


@pytest.mark.actors("root", "user")
def test_one_inode_for_a_name(arena: Arena) -> None:
    """A copy takes no inode of its own in the index, its name one."""
    lower = _linked_from_outside(arena, {str(number): File(b"x") for number in range(50)})
    with arena.mount(lower) as mount:
        before = _kept(arena)[0]
        for number in range(50):
            (mount / str(number)).write_bytes(b"changed")
        in_upper = 50
        assert _kept(arena)[0] - before - in_upper <= 52


@pytest.mark.actors("root", "user")
def test_an_unmount_at_once_leaves_it_to_the_next_mount(arena: Arena) -> None:
    lower = _linked_from_outside(arena, {str(number): File(b"x" * SIZE) for number in range(20)})
    for _ in range(2):
        with arena.mount(lower) as mount:
            for number in range(20):
                (mount / str(number)).unlink(missing_ok=True)
    assert not (arena.root / ".upper.fuseunion-work").exists()


def test_what_a_name_shows_stays(arena: Arena) -> None:
    """A copy that a name of the union still shows, seen or not, is kept, however long."""
    description: dict[Name, Node] = {"a": File(b"lower"), "d/b": Link("a"), "c": File(b"other"), "e": Link("c")}
    lower = _linked_from_outside(arena, description)
    with arena.mount(lower) as mount:
        number, links = (mount / "a").stat().st_ino, (mount / "a").stat().st_nlink
        with open(mount / "a", "ab") as file:
            file.write(b" changed")
        (mount / "a").unlink()
        (mount / "c").unlink()
        for _ in range(2):
            mount.stop()
            mount.start()
        assert (mount / "d/b").read_bytes() == b"lower changed"
        assert (mount / "d/b").stat().st_ino == number
        assert (mount / "d/b").stat().st_nlink == links - 1
        assert (mount / "e").stat().st_nlink == links - 1
        os.link(mount / "d/b", mount / "new")
        (mount / "d/b").unlink()
        mount.stop()
        mount.start()
        assert (mount / "new").read_bytes() == b"lower changed"
        assert (mount / "new").stat().st_ino == number


@pytest.mark.actors("root", "user")
def test_an_open_file_goes_on(arena: Arena) -> None:
    """Who has a file open whose last name went reads and writes it, and sees no link."""
    lower = _linked_from_outside(arena, {"a": File(b"lower"), "b": File(b"untouched")})
    with arena.mount(lower) as mount, open(mount / "a", "r+b") as changed, open(mount / "b", "rb") as read:
        changed.write(b"LOWER!")
        changed.flush()
        (mount / "a").unlink()
        (mount / "b").unlink()
        wait_until(lambda: _kept(arena)[1] == 0, "the index to be empty", 20)
        changed.seek(0)
        assert changed.read() == b"LOWER!"
        assert read.read() == b"untouched"
        assert os.fstat(changed.fileno()).st_nlink == 0
        changed.write(b"more")


@pytest.mark.actors("user")
def test_a_closed_lower_directory_tells_nothing(arena: Arena) -> None:
    """A directory that can be searched and not listed may hold names that are shown: everything stays."""
    lower = arena.lower({"a": File(b"lower"), "closed/b": Link("a")})
    (lower / "closed").chmod(0o300)
    try:
        os.link(lower / "a", arena.directory("cache") / "a")
        arena._lowers.clear()
        with arena.mount(lower) as mount:
            (mount / "a").write_bytes(b"changed")
            (mount / "a").unlink()
            mount.stop()
            mount.start()
            assert (mount / "closed/b").read_bytes() == b"changed"
    finally:
        (lower / "closed").chmod(0o755)


@pytest.mark.actors("user")
def test_other_lowers_say_nothing(arena: Arena) -> None:
    """A copy that only the index holds is there again once its own lower is."""
    lower = _linked_from_outside(arena, {"a": File(b"lower"), "d/b": Link("a")})
    other = arena.lower({"other": File()}, "other")
    with _union(arena, lower) as union:
        union.write("a", b"LOWER")
        union.unlink("a")
    with _union(arena, other) as union:
        union.unlink("other")
        assert in_one_piece(union.union.drop_unshown()) == 0
    with _union(arena, lower) as union:
        assert union.read("d/b") == b"LOWER"


# -- indexes of older versions -----------------------------------------------------------------------------------------


@contextmanager
def _union(arena: Arena, lower: Path) -> Iterator[InProcess]:
    with ExitStack() as stack:
        arena.directory("upper")
        arena.directory("work")
        yield stack.enter_context(in_process([lower], arena.upper, arena.root / "work"))


def _as_older(links: Path) -> None:
    """Give an index the form that it had before: a directory for each lower file."""
    for path in sorted(links.iterdir()):
        *key, count = path.name.split("-")[:4]
        token = path.name.split("-")[4:]
        directory = links / "-".join(key)
        directory.mkdir(mode=0o700, exist_ok=True)
        (directory / f"l-{count}").touch()
        path.rename(directory / (f"c-{token[0]}" if token else "inode"))


def _prepared(arena: Arena) -> Path:
    lower = arena.lower({"a": File(b"lower"), "d/b": Link("a"), "e/c": Link("a"), "x": File(b"two"), "y": Link("x")})
    with _union(arena, lower) as union:
        union.write("a", b"LOWER")
        union.unlink("a")
        union.unlink("x")
    _as_older(arena.root / "work/links")
    return lower


def _check(union: InProcess) -> None:
    assert union.read("d/b") == b"LOWER"
    assert union.read("e/c") == b"LOWER"
    assert union.find("d/b") is union.find("e/c")
    file = union.find("d/b")
    assert union.union.stat(file)[1] == 2
    assert union.union.stat(union.find("y"))[1] == 1


def test_an_older_index_is_brought_into_the_new_form(arena: Arena) -> None:
    lower = _prepared(arena)
    for _ in range(2):
        with _union(arena, lower) as union:
            assert not [path for path in (arena.root / "work/links").iterdir() if path.is_dir()]
            _check(union)


@pytest.mark.actors("user")
def test_a_crash_while_an_older_index_is_changed(arena: Arena) -> None:
    lower = _prepared(arena)

    def load() -> None:
        with _union(arena, lower):
            pass

    died = 0
    while not run_until_change(died, load):
        died += 1
        with _union(arena, lower) as union:
            _check(union)
        _as_older(arena.root / "work/links")
    assert died > 5


@pytest.mark.actors("user")
def test_a_crash_while_a_group_ends(arena: Arena) -> None:
    """Killed before each change: the names show what they did, and the next mount leaves nothing."""
    lower = _linked_from_outside(arena, {"a": File(b"lower"), "d/b": Link("a"), "other": File(b"other")})

    def remove() -> None:
        with _union(arena, lower) as union:
            for name in ("a", "d/b"):
                union.write(name, b"LOWER")
                union.unlink(name)

    number = 0
    while not run_until_change(number, remove):
        number += 1
        with _union(arena, lower) as union:
            for name in ("a", "d/b"):
                _readable(lambda name=name: union.read(name))
            assert union.read("other") == b"other"
        remove_all(arena, lower)
        for path in (arena.upper, arena.root / "work"):
            shutil.rmtree(path)
    assert number > 10


def _readable(read: Callable[[], bytes]) -> None:
    try:
        assert read() in (b"lower", b"LOWER")
    except FileNotFoundError:
        pass  # removed


def remove_all(arena: Arena, lower: Path) -> None:
    """Remove both names, however far the crash let them come; then no data is left in the index, whose end may have
    been what was cut off: then names of two that are gone may be left."""
    with _union(arena, lower) as union:
        for name in ("a", "d/b"):
            try:
                union.unlink(name)
            except FileNotFoundError:
                continue
        in_one_piece(union.union.drop_unshown())
    links = arena.root / "work/links"
    left = list(links.iterdir()) if links.exists() else []
    assert len(left) < 2 and not any(path.name.count("-") == 3 for path in left), left
