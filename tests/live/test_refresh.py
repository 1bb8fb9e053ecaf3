"""`fuseunion refresh`: a lower that was changed underneath is shown as it is, and what is the upper's stays."""

from __future__ import annotations

import mmap
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.live.traffic import UNCHANGED, traffic
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Symlink
from tests.support.mounts import FuseunionMount
from tests.support.tree import look, snapshot

WIRE = pytest.mark.parametrize("wire", ["1", "0"], ids=["extension", "pyfuse3"])


def refresh(arena: Arena, mount: FuseunionMount, *paths: str) -> None:
    done = arena.place.fuseunion("refresh", mount.merged, *paths)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def changed_lower(arena: Arena, tree: dict[str, File | Dir | Symlink]) -> Path:
    """A lower that the test may change: one that the arena does not check."""
    lower = arena.directory("changing")
    for name, node in tree.items():
        (lower / name).parent.mkdir(parents=True, exist_ok=True)
        node.make(os.fsencode(lower / name))
    return lower


def replace(path: Path, data: bytes) -> None:
    path.with_name("new").write_bytes(data)
    path.with_name("new").rename(path)


@WIRE
@pytest.mark.actors("root", "user")
def test_each_change(arena: Arena, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed, replaced, added, removed, of another type; directories swapped; below a directory of the upper too."""
    monkeypatch.setenv("FUSEUNION_WIRE", wire)
    files = [
        "same",
        "inside",
        "replaced",
        "removed",
        "to directory",
        "d/f",
        "d/gone",
        "one/f",
        "two/f",
        "u/f",
        "u/g",
        "kept",
    ]
    lower = changed_lower(arena, {name: File(name.encode()) for name in files} | {"link": Symlink("a"), "empty": Dir()})
    below = arena.lower({"one/below": File(b"b"), "hidden before": File(b"h"), "removed": File(b"under it")})
    with arena.mount(lower, below, arguments=["--volatile"]) as mount:
        for name in ("added", "u/added", "d/added", "empty/added", "one/added", "added directory"):
            assert not (mount / name).exists()
        (mount / "u/mine").write_bytes(b"mine")
        (mount / "u/g").unlink()
        (mount / "kept").write_bytes(b"changed here")
        before = look(mount.merged)
        numbers = {name: (mount / name).stat().st_ino for name in ("same", "inside", "d", "u", "u/f", "one")}
        kept = [os.open(mount / name, os.O_PATH) for name in numbers]  # so that the kernel forgets none
        with (lower / "inside").open("r+b") as file:
            file.write(b"INSIDE and longer")
        replace(lower / "replaced", b"another")
        (lower / "removed").unlink()
        (lower / "to directory").unlink()
        (lower / "to directory").mkdir()
        (lower / "to directory/x").write_bytes(b"x")
        (lower / "d/gone").unlink()
        replace(lower / "d/f", b"another in d")
        (lower / "one").rename(lower / "three")
        (lower / "two").rename(lower / "one")
        (lower / "three").rename(lower / "two")
        (lower / "u/f").write_bytes(b"changed")
        (lower / "u/g").write_bytes(b"still deleted")
        replace(lower / "kept", b"nobody sees it")
        (lower / "link").unlink()
        (lower / "link").symlink_to("b")
        for name in ("added", "u/added", "d/added", "empty/added", "one/added"):
            (lower / name).write_bytes(b"+")
        (lower / "added directory/deep").mkdir(parents=True)
        (lower / "hidden before").mkdir()
        upper = snapshot(arena.upper)
        refresh(arena, mount)
        now = look(mount.merged)
        expected = before | {
            "inside": b"INSIDE and longer",
            "replaced": b"another",
            "removed": b"under it",
            "to directory": b"/",
            "to directory/x": b"x",
            "d/f": b"another in d",
            "one/f": b"two/f",
            "two/f": b"one/f",
            "u/f": b"changed",
            "link": b"b",
            "hidden before": b"/",
            **dict.fromkeys(("added", "u/added", "d/added", "empty/added", "one/added"), b"+"),
            "added directory": b"/",
            "added directory/deep": b"/",
        }
        del expected["d/gone"]
        assert now == expected
        assert "d/gone" not in now and now["u/mine"] == b"mine" and "u/g" not in now and now["kept"] == b"changed here"
        assert {name: (mount / name).stat().st_ino for name in numbers} == numbers
        assert snapshot(arena.upper) == upper, "nothing is written"
        for fd in kept:
            os.close(fd)
    with arena.mount(lower, below, arguments=["--volatile"]) as mount:
        assert look(mount.merged) == expected, "as a new mount shows it"


@WIRE
@pytest.mark.actors("root", "user")
def test_what_is_open(arena: Arena, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open files and working directories go on; a changed file shows its new data through all of them."""
    monkeypatch.setenv("FUSEUNION_WIRE", wire)
    lower = changed_lower(
        arena, {"d/f": File(b"a" * 10000), "d/quiet": File(b"q" * 100), "d/up": File(b"u"), "d/other": File(b"o")}
    )
    with arena.mount(lower) as mount, ExitStack() as stack:
        file = stack.enter_context((mount / "d/f").open("rb", buffering=0))
        written = stack.enter_context((mount / "d/up").open("r+b", buffering=0))
        directory = os.open(mount / "d", os.O_RDONLY | os.O_DIRECTORY)
        shown = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        assert shown[:3] == file.read(3) == b"aaa"
        assert (mount / "d/quiet").read_bytes() == b"q" * 100
        written.write(b"U")
        with (lower / "d/f").open("r+b") as changed:
            changed.write(b"b" * 10000)
        times = (lower / "d/quiet").stat()
        (lower / "d/quiet").write_bytes(b"Q" * 100)
        os.utime(lower / "d/quiet", ns=(times.st_atime_ns, times.st_mtime_ns))
        refresh(arena, mount, "d")
        assert file.read(3) == b"bbb" and os.pread(file.fileno(), 2, 0) == b"bb"
        assert shown[:3] == b"bbb"
        shown.close()
        assert (mount / "d/quiet").read_bytes() == b"Q" * 100, "with the old time and size"
        written.write(b"V")
        assert os.pread(written.fileno(), 9, 0) == b"UV"
        assert sorted(os.listdir(directory)) == ["f", "other", "quiet", "up"]
        assert os.stat("other", dir_fd=directory).st_size == 1
        os.close(directory)


@pytest.mark.actors("root", "user")
def test_a_part(arena: Arena) -> None:
    """Only what is asked for is forgotten; the names on the way are."""
    lower = changed_lower(arena, {"a/b/f": File(b"1"), "c/f": File(b"1")})
    with arena.mount(lower) as mount:
        look(mount.merged)
        assert not (mount / "a/n").exists() and not (mount / "c/n").exists()
        replace(lower / "a/b/f", b"22")
        replace(lower / "c/f", b"22")
        (lower / "a/n").write_bytes(b"n")
        (lower / "c/n").write_bytes(b"n")
        refresh(arena, mount, "a/b", "a/n", "not/there")
        assert (mount / "a/b/f").read_bytes() == b"22" and (mount / "a/n").read_bytes() == b"n"
        assert not (mount / "c/n").exists(), "as the kernel remembers"
        refresh(arena, mount)
        assert (mount / "c/f").read_bytes() == b"22" and (mount / "c/n").exists()
        for arguments, code, said in (
            ((), 2, "refresh MERGED [PATH...]"),
            ((lower,), 3, "nothing of yours is mounted"),
            ((mount.merged, "../x"), 3, "leads out of"),
        ):
            done = arena.place.fuseunion("refresh", *arguments)
            assert done.returncode == code and said in done.stderr and done.stderr.count("\n") == 1


@WIRE
@pytest.mark.actors("root", "user")
def test_while_it_is_used(arena: Arena, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that look up, list, write and rename in the same directories are not held up, and lose nothing."""
    monkeypatch.setenv("FUSEUNION_WIRE", wire)
    lower = changed_lower(arena, {f"d{n % 5}/f{n}": File(UNCHANGED) for n in range(300)})
    with arena.mount(lower, arguments=["--volatile"]) as mount:
        with traffic(mount, 300):
            for number in range(4):
                (lower / f"d3/more{number}").write_bytes(b"m")
                refresh(arena, mount)
                assert (mount / f"d3/more{number}").read_bytes() == b"m"
        for path in arena.upper.glob("d*/f*"):
            assert path.read_bytes().strip(b"y") == UNCHANGED


@pytest.mark.actors("root", "user")
def test_many_lowers_and_links(arena: Arena) -> None:
    """What is remembered of deep stacks is forgotten; names of one file are those of one file, before and after."""
    lowers = [arena.lower({f"only{number}": File(b"x"), "d/all": File(b"%d" % number)}) for number in range(5)]
    changing = changed_lower(arena, {"links/one": File(b"1"), "links/alone": File(b"2"), "d/here": File(b"h")})
    os.link(changing / "links/one", changing / "links/two")
    with arena.mount(*lowers[:3], changing, *lowers[3:]) as mount:
        look(mount.merged)
        assert not (mount / "d/new").exists() and not (mount / "later").exists()
        assert (mount / "links/one").stat().st_nlink == 2
        (changing / "d/new").write_bytes(b"n")
        (changing / "later").mkdir()
        (changing / "later/f").write_bytes(b"l")
        (changing / "d/here").unlink()
        os.link(changing / "links/alone", changing / "links/another")
        replace(changing / "links/two", b"3")
        refresh(arena, mount)
        now = look(mount.merged)
        assert now["d/new"] == b"n" and now["later/f"] == b"l" and "d/here" not in now and now["d/all"] == b"0"
        assert [now[f"links/{name}"] for name in ("one", "two", "alone", "another")] == [b"1", b"3", b"2", b"2"]
        assert (mount / "links/alone").stat().st_ino == (mount / "links/another").stat().st_ino
        with (mount / "links/another").open("ab") as file:
            file.write(b"+")
        assert (mount / "links/alone").read_bytes() == b"2+" and (changing / "links/alone").read_bytes() == b"2"
        (mount / "d/new").write_bytes(b"changed")
        replace(changing / "d/new", b"nobody sees it")
        refresh(arena, mount, "d")
        assert (mount / "d/new").read_bytes() == b"changed"
