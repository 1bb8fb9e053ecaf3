"""What goes through many names stops again and again, and what happens at each stop makes it no less right."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fuseunion.core.tree.directory import Directory
from fuseunion.linux import syscalls
from fuseunion.steps import Steps, in_one_piece
from tests.support import faults
from tests.support.inprocess import InProcess, in_process

MANY = 3000

MOST_CALLS = 1000
"""System calls between two stops: some milliseconds."""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in ("lower/d/sub", "lower/other", "upper", "work"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def _opened(base: Path) -> AbstractContextManager[InProcess]:
    return in_process([base / "lower"], base / "upper", base / "work")


class Calls:
    """Counts the system calls of the process, and remembers how many came at most between two stops."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stops = 0
        self.most = 0
        self._since = 0
        for module, names in ((os, faults._OF_OS), (syscalls, faults._OF_OURS)):
            for name in names:
                monkeypatch.setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            self._since += 1
            return function(*args, **kwargs)

        return call

    def stop(self) -> None:
        """Somebody else may go on."""
        self.stops += 1
        self.most = max(self.most, self._since)
        self._since = 0


def _prepared(union: InProcess, path: str, calls: Calls) -> None:
    for files in union.union.make_movable(union.find(path)):
        calls.stop()
        for file in files or ():
            union.copy(file)
            calls.stop()


def test_a_large_tree_is_made_movable_in_small_steps(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, empty or not, subdirectories and whiteouts; and the rename itself costs the same as of an empty one."""
    for number in range(MANY):
        (base / f"lower/d/sub/{number}").write_bytes(b"x" * (number % 2))
    (base / "lower/empty").mkdir()
    costs = []
    with _opened(base) as union:
        for number in range(0, MANY, 5):
            union.unlink(f"/d/sub/{number}")
        union.forget()
        calls = Calls(monkeypatch)
        for path in ("/d", "/empty"):
            _prepared(union, path, calls)
            calls.stop()
            union.union.rename(
                union.union.root, os.fsencode(path[1:]), union.union.root, b"moved" + path[1:].encode(), 0
            )
            costs.append(calls._since)
        assert len(union.names("/movedd/sub")) == MANY - MANY // 5
        assert sorted(os.listdir(base / "upper/movedd/sub")) == sorted(union.names("/movedd/sub"))
    assert calls.most < MOST_CALLS and calls.stops > MANY // 20, (calls.most, calls.stops)
    assert costs[0] <= costs[1] + 5, costs


def _stopping(steps: Steps[None], calls: Calls) -> None:
    for _ in steps:
        calls.stop()


@pytest.mark.parametrize("act", ["removed", "replaced"])
def test_very_many_whiteouts_go_in_small_steps(base: Path, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    """A directory that looks empty is removed, or renamed over."""
    for number in range(MANY):
        (base / f"lower/d/sub/{number}").touch()
    with _opened(base) as union:
        for number in range(MANY):
            union.unlink(f"/d/sub/{number}")
        union.mkdir("/new")
        union.forget()
        directory, target = union.find("/d"), union.find("/d/sub")
        assert isinstance(directory, Directory)
        calls = Calls(monkeypatch)
        if act == "removed":
            _stopping(union.union.rmdir(directory, b"sub"), calls)
        else:
            for files in union.union.make_replaceable(target):
                assert not files
                calls.stop()
            union.union.rename(union.union.root, b"new", directory, b"sub", 0)
        calls.stop()
        assert calls.most < MOST_CALLS and calls.stops > MANY // 20, (calls.most, calls.stops)
        assert union.names("/d") == ([] if act == "removed" else ["sub"])
        assert len(os.listdir(base / "work/work")) <= 1, "but for the spare whiteout"


def test_a_directory_that_is_not_empty_any_more_is_not_removed(base: Path) -> None:
    """A name that comes while it is looked through for one."""
    for number in range(100):
        (base / f"lower/d/sub/{number}").touch()
    with _opened(base) as union:
        for number in range(100):
            union.unlink(f"/d/sub/{number}")
        directory = union.find("/d")
        assert isinstance(directory, Directory)
        steps = union.union.rmdir(directory, b"sub")
        next(steps)
        next(steps)
        union.create("/d/sub/0", b"new")
        with pytest.raises(OSError, match="not empty"):
            in_one_piece(steps)
        assert union.read("/d/sub/0") == b"new"


# -- a tree that changes while it is prepared --------------------------------------------------------------------------


class Meanwhile:
    """Random changes at the stops of a rename, of a tree and of a plain copy of it."""

    def __init__(self, union: InProcess, model: dict[str, bytes | None], rng: random.Random) -> None:
        self._union = union
        self.model = model
        self._rng = rng
        self._made = 0
        self.done = 0

    def _files(self) -> list[str]:
        return sorted(path for path, data in self.model.items() if data is not None)

    def _directories(self, below: str) -> list[str]:
        return sorted(path for path, data in self.model.items() if data is None and path.startswith(below))

    def _new_name(self, below: str) -> str:
        self._made += 1
        return f"{self._rng.choice(self._directories(below))}/new{self._made}"

    def change(self) -> None:
        """One change."""
        below = self._rng.choice(["/d", "/other"])
        self._rng.choice([self._unlink, self._create, self._mkdir, self._move, self._link, self._move_directory])(below)
        self.done += 1

    def _unlink(self, below: str) -> None:
        path = self._rng.choice(self._files())
        self._union.unlink(path)
        del self.model[path]

    def _create(self, below: str) -> None:
        path = self._new_name(below)
        self._union.create(path, path.encode())
        self.model[path] = path.encode()

    def _mkdir(self, below: str) -> None:
        path = self._new_name(below)
        self._union.mkdir(path)
        self.model[path] = None

    def _move(self, below: str) -> None:
        path, target = self._rng.choice(self._files()), self._new_name(below)
        self._union.rename(path, target)
        self.model[target] = self.model.pop(path)

    def _link(self, below: str) -> None:
        path, target = self._rng.choice(self._files()), self._new_name(below)
        self._union.link(path, target)
        self.model[target] = self.model[path]

    def _move_directory(self, below: str) -> None:
        inner = [path for path in self._directories("/") if path.count("/") > 1]
        path, target = self._rng.choice(inner), self._new_name(below)
        if target.startswith(path + "/"):
            return
        self._union.rename(path, target)
        for old in [old for old in self.model if old == path or old.startswith(path + "/")]:
            self.model[target + old[len(path) :]] = self.model.pop(old)


def _seen(union: InProcess) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    waiting = [""]
    while waiting:
        path = waiting.pop()
        for name in union.names(path):
            child = f"{path}/{name}"
            if isinstance(union.find(child), Directory):
                found[child] = None
                waiting.append(child)
            else:
                found[child] = union.read(child)
    return found


def _numbers(union: InProcess) -> dict[str, int]:
    return {path: union.find(path).ino for path in _seen(union)}


@pytest.mark.parametrize("seed", range(30))
def test_anything_may_happen_meanwhile(base: Path, seed: int) -> None:
    """Files and directories come, go and move while the tree is prepared: then, and after a remount, all is there."""
    rng = random.Random(seed)
    model: dict[str, bytes | None] = {"/d": None, "/other": None}
    for directory in ("/d/sub", "/d/sub/deep", "/d/b", "/other/o"):
        (base / f"lower{directory}").mkdir(exist_ok=True, parents=True)
        model[directory] = None
        for number in range(24):
            path = f"{directory}/{number}"
            (base / f"lower{path}").write_text(path)
            model[path] = path.encode()
    for number in range(4):
        os.link(base / f"lower/d/sub/{number}", base / f"lower/other/o/linked{number}")
        model[f"/other/o/linked{number}"] = model[f"/d/sub/{number}"]
    with _opened(base) as union:
        first = {data: union.find(path).ino for path, data in model.items() if data is not None}
        union.forget()
        meanwhile = Meanwhile(union, model, rng)
        for _ in range(6):
            meanwhile.change()
        if seed % 2:
            union.forget()
        for files in union.union.make_movable(union.find("/d")):
            for file in files or ():
                union.copy(file)
                if rng.random() < 0.2:
                    meanwhile.change()
            if rng.random() < 0.5:
                meanwhile.change()
        union.union.rename(union.union.root, b"d", union.union.root, b"moved", 0)
        expected = {
            ("/moved" + path[2:] if path == "/d" or path.startswith("/d/") else path): data
            for path, data in model.items()
        }
        assert _seen(union) == expected, f"seed {seed}, {meanwhile.done} changes"
        assert not _devices(base / "upper/moved"), "a whiteout that hides nothing"
        numbers = _numbers(union)
        assert not [path for path, data in expected.items() if data in first and numbers[path] != first[data]]
        union.forget()
        assert union.union.state.table.size == 1
    with _opened(base) as union:
        assert _seen(union) == expected, f"seed {seed}, {meanwhile.done} changes"
        assert _numbers(union) == numbers, f"seed {seed}, {meanwhile.done} changes"
    assert meanwhile.done > 6


def _devices(top: Path) -> list[Path]:
    return [path for path in top.rglob("*") if path.is_char_device()]


def test_a_redirected_directory_below_is_independent_as_well(base: Path) -> None:
    """As the kernel leaves one with redirect_dir=on: its redirect, from the root, would still lead to the lower."""
    (base / "lower/elsewhere").mkdir()
    for name in ("kept", "gone"):
        (base / f"lower/elsewhere/{name}").write_text(name)
    (base / "upper/d/redirected").mkdir(parents=True)
    for prefix in ("trusted", "user"):
        os.setxattr(base / "upper/d/redirected", f"{prefix}.overlay.redirect", b"/elsewhere")
    with _opened(base) as union:
        union.unlink("/d/redirected/gone")
        union.rename("/d", "/moved")
        assert union.names("/moved/redirected") == ["kept"]
    with _opened(base) as union:
        assert union.names("/moved/redirected") == ["kept"]
        assert union.read("/moved/redirected/kept") == b"kept"


# -- one snapshot for a directory --------------------------------------------------------------------------------------


def test_handles_share_a_listing_until_the_directory_changes(base: Path) -> None:
    """50 handles on 50,000 names: one list. What comes later is seen by who opens or rewinds later."""
    for number in range(50_000):
        os.mknod(base / f"lower/d/sub/{number}")
    with _opened(base) as union:
        directory = union.find("/d/sub")
        assert isinstance(directory, Directory)
        handles = [union.union.opendir(directory) for _ in range(50)]
        listings = [in_one_piece(union.union.names(handle, again=True)) for handle in handles]
        assert len({id(names) for names in listings}) == 1 and len(set(listings[0])) == 50_000
        union.create("/d/sub/new")
        union.unlink("/d/sub/7")
        late = union.union.opendir(directory)
        assert b"new" in in_one_piece(union.union.names(late, again=False))
        old = in_one_piece(union.union.names(handles[0], again=False))
        assert old is listings[0] and b"new" not in old and b"7" in old
        again = in_one_piece(union.union.names(handles[0], again=True))
        assert again is in_one_piece(union.union.names(late, again=False))
        listings.clear()
        del old, again
        for handle in (*handles, late):
            union.union.release_directory(handle)
        handles.clear()
        del handle, late
        assert directory.listed is None, "nobody needs it any more"


def test_a_listing_during_which_the_directory_changed_is_not_shared(base: Path) -> None:
    for number in range(2000):
        os.mknod(base / f"lower/d/sub/{number}")
    with _opened(base) as union:
        directory = union.find("/d/sub")
        assert isinstance(directory, Directory)
        first, second = union.union.opendir(directory), union.union.opendir(directory)
        steps = union.union.names(first, again=True)
        next(steps)
        union.create("/d/sub/new")
        in_one_piece(steps)
        assert b"new" in in_one_piece(union.union.names(second, again=True))
        for handle in (first, second):
            union.union.release_directory(handle)
