"""Directories in which many lowers take part: only those that hold a name are asked for it, and what is shown is what
it would be if all were asked."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.marks import holders
from fuseunion.core.tree import listing, lookup
from fuseunion.core.tree.directory import Directory
from tests.support.asked import counted
from tests.support.faults import failing
from tests.support.inprocess import InProcess, in_process
from tests.support.layers import Dir, File, Mark, Node, Opacity, Opaque, Whiteout, build

LAYERS = 6


def remembers_from(monkeypatch: pytest.MonkeyPatch, lowers: int) -> None:
    """Let as many lowers be many."""
    for module in (listing, lookup):
        monkeypatch.setattr(module, "DEEP", lowers)


@pytest.fixture
def lowers(tmp_path: Path) -> list[Path]:
    """A directory that all have, with one name of each, and one that all have."""
    layers = {f"lower{number}": {f"d/own{number}": File(b"x"), "d/all": File(b"y")} for number in range(LAYERS)}
    return [build(tmp_path / name, layer) for name, layer in layers.items()]


@pytest.fixture
def union(tmp_path: Path, lowers: list[Path]) -> Iterator[InProcess]:
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "upper/d").mkdir()
    with in_process(lowers, tmp_path / "upper", tmp_path / "work") as made:
        yield made


def directory(union: InProcess) -> Directory:
    found = union.find("d")
    assert isinstance(found, Directory)
    return found


@pytest.mark.parametrize("listed", [False, True])
def test_only_who_holds_a_name_is_asked(union: InProcess, monkeypatch: pytest.MonkeyPatch, *, listed: bool) -> None:
    union.names("d") if listed else directory(union)
    union.forget()
    union.find("d")
    with counted(monkeypatch) as asked:
        for name in ("missing", f"own{LAYERS - 1}", "all"):
            found = union.union.lookup(directory(union), os.fsencode(name))
            assert (found is None) == (name == "missing")
    # Each in the upper; then in the only lower that has it, or in the topmost of them.
    assert sorted(asked) == sorted([b"missing", *2 * [f"own{LAYERS - 1}".encode()], *2 * [b"all"]])


def test_what_changes_in_the_upper_is_seen(union: InProcess) -> None:
    names = union.names("d")
    union.create("d/new")
    union.unlink("d/own3")
    union.rename("d/own4", "d/moved")
    union.mkdir("d/own3")
    changed = sorted({*names, "new", "moved"} - {"own4"})
    assert union.names("d") == changed
    union.forget()
    assert union.names("d") == changed
    assert isinstance(union.find("d/own3"), Directory)
    for missing in ("own4", "nothing"):
        with pytest.raises(FileNotFoundError):
            union.find(f"d/{missing}")


def test_a_directory_that_leaves_the_lowers(union: InProcess) -> None:
    names = union.names("d")
    union.rename("d", "other")
    assert union.names("other") == names
    union.mkdir("d")
    assert union.names("d") == []


def test_only_so_many_names_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten, and asked for as before; all are, when their directories are."""
    tree = {f"d{one}/name{two}": File(b"x") for one in range(10) for two in range(10)}
    paths = [build(tmp_path / f"lower{number}", tree) for number in range(LAYERS)]
    monkeypatch.setattr(holders, "_KEPT", 40)
    with in_process(paths, None, None) as union:
        union.names("")
        remembered = union.union.state.holders
        at_root = remembered.names
        assert at_root == 10
        for number in range(10):
            assert len(union.names(f"d{number}")) == 10
            assert remembered.names <= 40
        with counted(monkeypatch) as asked:
            assert union.union.lookup(union.find("d0"), b"missing") is None  # type: ignore[arg-type]
            assert union.union.lookup(union.find("d9"), b"missing") is None  # type: ignore[arg-type]
        assert asked == [b"missing"] * LAYERS
        union.forget()
        assert remembered.names <= at_root


def test_a_lookup_lists_no_large_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for that; who lists it learns it for all."""
    tree = {f"name{number}": File(b"x") for number in range(10)}
    paths = [build(tmp_path / f"lower{number}", tree) for number in range(LAYERS)]
    monkeypatch.setattr(holders, "_AT_ONCE", 15)
    with in_process(paths, None, None) as union:
        for expected in (LAYERS, 0):
            with counted(monkeypatch) as asked:
                assert union.union.lookup(union.union.root, b"missing") is None
            assert asked == [b"missing"] * expected
            union.names("")


def test_a_directory_that_cannot_be_listed(union: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """May a directory be searched, but not read, all are asked."""
    found = directory(union)

    def scan(_self: RealDir) -> Iterator[list[bytes]]:
        raise PermissionError(13, "of the test")
        yield []

    with monkeypatch.context() as patch, counted(monkeypatch) as asked:
        patch.setattr(RealDir, "scan", scan)
        assert union.union.lookup(found, b"missing") is None
    assert asked == [b"missing"] * (LAYERS + 1)


@pytest.mark.parametrize("code", [5, 24])
def test_a_lookup_that_fails_changes_nothing(union: InProcess, code: int) -> None:
    """Whichever call fails once: the lookup says so, or finds what is there."""
    number = 0
    while True:
        union.forget()
        union.union.state.descriptors.close()
        with failing(number, code) as fault:
            try:
                answer = union.union.lookup(directory(union), b"own3") is not None
            except OSError as error:
                answer = error.errno == code
        assert answer, f"call {number}, {fault.call}"
        assert union.names("d") == sorted(["all", *(f"own{layer}" for layer in range(LAYERS))])
        if fault.call is None:
            break
        number += 1
    assert number > LAYERS


NAMES = ["a", "b", "c"]
PATHS = [*NAMES, *(f"{x}/{y}" for x in NAMES for y in NAMES), "a/a/a", "a/a/b", "b/a/c"]


def some_layer(chance: random.Random) -> dict[str | bytes, Node]:
    """A layer with anything that can hide, at a few paths."""
    layer: dict[str | bytes, Node] = {}
    for path in sorted(chance.sample(PATHS, chance.randint(1, 6)), key=len):
        parents = [path[:end] for end in (1, 3) if end < len(path)]
        if any(not isinstance(layer.setdefault(parent, Dir()), (Dir, Opaque)) for parent in parents):
            continue
        kinds: list[Node] = [Dir(), Dir(), File(os.urandom(3)), Whiteout(Mark.WH_FILE), Opaque(Opacity.OCI)]
        kinds += [Opaque(Opacity.TRUSTED), Whiteout(Mark.DEVICE), Whiteout(Mark.XATTR_TRUSTED)]
        kinds += [File(xattrs={"trusted.overlay.metacopy": b""})]
        kinds += [Dir(xattrs={"trusted.overlay.redirect": chance.choice(["a", "b", "/a", "/b/a"]).encode()})]
        if path not in layer:
            layer[path] = chance.choice(kinds)
    return layer


@pytest.mark.parametrize("seed", range(40))
def test_it_is_as_if_all_were_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chance = random.Random(seed)
    paths = [build(tmp_path / f"lower{number}", some_layer(chance)) for number in range(LAYERS)]
    seen = []
    for many in (LAYERS + 1, 1):
        remembers_from(monkeypatch, many)
        for name in ("upper", "work"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            (tmp_path / name).mkdir()
        with in_process(paths, tmp_path / "upper", tmp_path / "work") as union:
            before = looked_up(union, numbers=True)
            listed = names(union)
            union.forget()
            assert looked_up(union, numbers=True) == before
            done = random.Random(seed)
            changes = [change(union, done) for _ in range(12)]
            after = names(union), looked_up(union)
            union.forget()
            assert (names(union), looked_up(union)) == after
            seen.append((before, listed, changes, after))
    assert seen[0] == seen[1]


def looked_up(union: InProcess, *, numbers: bool = False) -> list[object]:
    """What each path is, without listing anything."""
    found: list[object] = []
    for path in PATHS:
        try:
            inode = union.find(path)
            data = None if isinstance(inode, Directory) else union.read(path)
            found.append((path, inode.kind, data, inode.ino if numbers else None))
        except OSError as error:
            found.append((path, error.errno))
        except AssertionError:
            found.append((path, "no directory on the way"))
    return found


def names(union: InProcess, path: str = "") -> list[str] | int | None:
    """Every path below one."""
    try:
        found = union.names(path)
        below = [
            names(union, f"{path}/{name}") for name in found if isinstance(union.find(f"{path}/{name}"), Directory)
        ]
    except OSError as error:
        return error.errno
    return [*found, *map(str, below)]


def change(union: InProcess, chance: random.Random) -> object:
    """Change something; answers what became of it."""
    path, other = chance.choice(PATHS), chance.choice(PATHS)
    calls = [
        lambda: union.create(path, b"new"),
        lambda: union.mkdir(path),
        lambda: union.unlink(path),
        lambda: union.rmdir(path),
        lambda: union.rename(path, other),
    ]
    call = chance.choice(calls)
    if other.startswith(path) or path.startswith(other):
        call = calls[2]
    try:
        return call()
    except OSError as error:
        return error.errno
    except AssertionError:
        return "no directory on the way"
