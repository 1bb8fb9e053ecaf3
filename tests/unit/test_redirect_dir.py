"""redirect_dir=on: a rename of a directory that lowers hold copies nothing, and shows what a plain directory shows:
here, after a remount, and in overlayfs."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support import libc
from tests.support.inprocess import InProcess, in_process
from tests.support.mounts import KernelMount

ROOT = os.geteuid() == 0
REDIRECT = f"{'trusted' if ROOT else 'user'}.overlay.redirect"
OPTIONS = ("redirect_dir=on", "index=off", "metacopy=off")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in ("top/d/sub/deep", "top/other", "low/d/sub", "low/other/o", "low/empty", "upper", "work", "merged"):
        (tmp_path / name).mkdir(parents=True)
    for number, name in enumerate(("top/d/f", "top/d/sub/deep/g", "low/d/f", "low/d/sub/h", "low/other/o/i")):
        (tmp_path / name).write_bytes(b"%d" % number)
    return tmp_path


def _opened(base: Path, *, redirect_dir: bool = True) -> AbstractContextManager[InProcess]:
    return in_process([base / "top", base / "low"], base / "upper", base / "work", redirect_dir=redirect_dir)


def _kernel(base: Path) -> KernelMount:
    return KernelMount([base / "top", base / "low"], base / "upper", base / "merged", options=OPTIONS)


def _redirect(path: Path) -> bytes | None:
    return os.getxattr(path, REDIRECT) if REDIRECT in os.listxattr(path) else None


def _shown(union: InProcess) -> dict[str, bytes | None]:
    """Every path, with the content of a file."""
    return {
        path: facts[-1] if isinstance(facts[-1], bytes) else None  # type: ignore[misc]
        for path, facts in union.tree().items()
    }


def _plain(root: Path) -> dict[str, bytes | None]:
    """The same of a mounted tree; a whiteout in a directory of one layer is listed by overlayfs, and is not there."""
    return {
        f"/{path.relative_to(root)}": path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
        if os.path.lexists(path)
    }


def test_nothing_below_is_copied(base: Path) -> None:
    """Neither up nor to anywhere: the upper has the directory, the mark and a whiteout."""
    with _opened(base) as union:
        numbers = {path: union.find(path).ino for path in ("/d", "/d/f", "/d/sub", "/d/sub/h")}
        union.rename("/d", "/other/moved")
        assert _shown(union).keys() >= {"/other/moved/f", "/other/moved/sub/deep/g", "/other/moved/sub/h"}
        union.forget()
        assert {path: union.find("/other/moved" + path[2:]).ino for path in numbers} == numbers
    assert sorted(os.listdir(base / "upper")) == ["d", "other"]
    assert os.listdir(base / "upper/other/moved") == []
    assert (base / "upper/d").is_char_device()
    with _opened(base, redirect_dir=False) as union:
        assert {path: union.find("/other/moved" + path[2:]).ino for path in numbers} == numbers
        assert union.read("/other/moved/f") == b"0"


def test_what_the_mark_says(base: Path) -> None:
    """A name while it stays in its directory, the path in the lowers once it has left it; then always that."""
    with _opened(base) as union:
        union.rename("/d", "/e")
        assert _redirect(base / "upper/e") == b"d"
        union.rename("/e", "/f")
        assert _redirect(base / "upper/f") == b"d"
        union.rename("/f/sub", "/f/bus")
        assert _redirect(base / "upper/f/bus") == b"sub"
        union.rename("/f/bus/deep", "/deep")
        assert _redirect(base / "upper/deep") == b"/d/sub/deep"
        union.rename("/f", "/other/f")
        assert _redirect(base / "upper/other/f") == b"/d"
        assert _redirect(base / "upper/other/f/bus") == b"sub"
        union.rename("/other/f", "/d")
        assert _redirect(base / "upper/d") == b"/d"
        union.rename("/other", "/empty")
        assert _redirect(base / "upper/empty") == b"other"
        union.mkdir("/new")
        union.rename("/new", "/newer")
        assert _redirect(base / "upper/newer") is None
        before = _shown(union)
    with _opened(base) as union:
        assert _shown(union) == before
        assert before["/d/bus/h"] == b"3" and before["/deep/g"] == b"1" and before["/empty/o/i"] == b"4"


def test_without_the_option_nothing_is_marked(base: Path) -> None:
    with _opened(base, redirect_dir=False) as union:
        union.rename("/d", "/e")
    assert _redirect(base / "upper/e") is None
    assert (base / "upper/e/sub/h").read_bytes() == b"3"


def test_what_lies_too_deep_is_copied(base: Path) -> None:
    """A mark holds a path of 256 bytes (fs/overlayfs/super.c); the rename works all the same."""
    parent = "/".join(["n" * 83] * 3)
    (base / "low" / parent / "fits").mkdir(parents=True)  # 1 + 83 + 1 + 83 + 1 + 83 + 1 + 4 = 257 bytes
    (base / "low" / parent / "fits/file").write_bytes(b"x")
    (base / "low" / parent / "fit").mkdir()
    with _opened(base) as union:
        union.rename(f"/{parent}/fit", "/fit")
        union.rename(f"/{parent}/fits", "/fits")
        assert union.read("/fits/file") == b"x"
    assert len(_redirect(base / "upper/fit") or b"") == 256
    assert _redirect(base / "upper/fits") is None and (base / "upper/fits/file").read_bytes() == b"x"


def test_a_mark_that_cannot_be_set_changes_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _opened(base) as union:
        before = _shown(union)
        real = os.setxattr

        def setxattr(path: object, name: bytes, *others: object, **named: object) -> None:
            if os.fsencode(name).endswith(b".redirect"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(path, name, *others, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "setxattr", setxattr)
        with pytest.raises(OSError, match="No space left"):
            union.rename("/d", "/other/e")
        assert _shown(union) == before
    with _opened(base) as union:
        assert _shown(union) == before


@pytest.mark.parametrize("redirect_dir", [True, False])
def test_a_name_that_leads_to_nothing_leads_to_nothing_elsewhere(base: Path, *, redirect_dir: bool) -> None:
    """A renamed directory in one that was made independent goes where a lower has the name of its mark."""
    (base / "low/other/sub").mkdir()
    (base / "low/other/sub/foreign").touch()
    with _opened(base) as union:
        union.rename("/d/sub", "/d/bus")
    with _opened(base, redirect_dir=False) as union:
        union.rename("/d", "/moved")
    with _opened(base, redirect_dir=redirect_dir) as union:
        union.rename("/moved/bus", "/other/bus")
        assert union.names("/other/bus") == ["deep", "h"]
    with _opened(base) as union:
        assert union.names("/other/bus") == ["deep", "h"]


# -- at random, against a plain directory and the kernel's overlayfs --------------------------------------------------

Act = Callable[[Callable[..., None]], None]


class _Chance:
    """Random operations on paths that are there; done by a union, and as they come out on a plain directory."""

    def __init__(self, twin: Path, rng: random.Random) -> None:
        self.twin, self._rng, self.renames = twin, rng, 0

    def _some(self, *, directories: bool) -> str:
        found = sorted(path for path in self.twin.rglob("*") if path.is_dir() == directories)
        return f"/{self._rng.choice(found).relative_to(self.twin)}" if found else ""

    def _new(self) -> str:
        return f"{self._rng.choice(['', self._some(directories=True)])}/{self._rng.choice('abcde')}"

    def one(self, do: Callable[[str, Sequence[str]], None]) -> None:
        """One operation, which has to answer what it answers in the plain directory."""
        what = self._rng.choice(["rename"] * 6 + ["exchange", "write", "create", "mkdir", "unlink", "rmdir", "file"])
        old = self._some(directories=what not in ("write", "unlink", "file"))
        args = {"exchange": [old, self._some(directories=True)], "create": [self._new()], "mkdir": [self._new()]}.get(
            what, [old, self._new()] if what in ("rename", "file") else [old]
        )
        if not all(args) or (what in ("rename", "exchange", "file") and _within(args)):
            return
        name = "rename" if what == "file" else what
        codes = [_code(do, name, args), _code(plain(self.twin), name, args)]
        assert codes[0] == codes[1], (name, args, codes)
        self.renames += what in ("rename", "exchange") and not codes[0]


def _within(ends: Sequence[str]) -> bool:
    one, other = (f"{end}/" for end in ends)
    return one.startswith(other) or other.startswith(one)


def _code(do: Callable[[str, Sequence[str]], None], name: str, args: Sequence[str]) -> int | None:
    try:
        do(name, args)
    except OSError as error:
        return {errno.EEXIST: errno.ENOTEMPTY}.get(error.errno or 0, error.errno)
    return None


def plain(root: Path) -> Callable[[str, Sequence[str]], None]:
    """Operations on a directory or a mount."""

    def do(name: str, args: Sequence[str]) -> None:
        paths = [root / arg[1:] for arg in args]
        if name == "rename":
            os.rename(*paths)
        elif name == "exchange":
            libc.rename(os.fsencode(paths[0]), os.fsencode(paths[1]), libc.RenameFlag.EXCHANGE)
        elif name == "write":
            with open(paths[0], "r+b") as file:
                file.write(b"changed")
        elif name == "create":
            with open(paths[0], "xb") as file:
                file.write(os.fsencode(args[0]))
        else:
            {"mkdir": os.mkdir, "unlink": os.unlink, "rmdir": os.rmdir}[name](paths[0])

    return do


def by_union(union: InProcess) -> Callable[[str, Sequence[str]], None]:
    """The same on a union."""

    def do(name: str, args: Sequence[str]) -> None:
        if name == "exchange":
            union.rename(args[0], args[1], libc.RenameFlag.EXCHANGE)
        elif name == "write":
            union.write(args[0], b"changed")
        elif name == "create":
            union.create(args[0], os.fsencode(args[0]))
        else:
            getattr(union, name)(*args)

    return do


@pytest.mark.parametrize("seed", range(20))
def test_at_random(base: Path, seed: int) -> None:
    """Many renames, remounts in between; every second round, as root, by overlayfs, which reads and writes the same."""
    rng = random.Random(seed)
    for layer in ("top", "low"):
        for directory in ("a/b/c", "a/d", "b/a", "c"):
            if rng.random() < 0.7:
                (base / layer / directory).mkdir(parents=True, exist_ok=True)
                (base / layer / directory / f"in-{layer}").write_text(directory)
    with _opened(base) as union:
        first = _shown(union)
    twin = base / "twin"
    twin.mkdir()
    for path, data in first.items():
        if data is None:
            (twin / path[1:]).mkdir()
    for path, data in first.items():
        if data is not None:
            (twin / path[1:]).write_bytes(data)
    chance = _Chance(twin, rng)
    for number in range(8):
        if number % 2 and ROOT:
            with _kernel(base) as kernel:
                assert _plain(kernel.merged) == _plain(twin), f"seed {seed}"
                for _ in range(8):
                    chance.one(plain(kernel.merged))
                assert _plain(kernel.merged) == _plain(twin), f"seed {seed}"
            shutil.rmtree(base / "upper-kernel-work")
            continue
        with _opened(base, redirect_dir=number != 6) as union:
            assert _shown(union) == _plain(twin), f"seed {seed}"
            for _ in range(8):
                chance.one(by_union(union))
                if rng.random() < 0.3:
                    union.forget()
            assert _shown(union) == _plain(twin), f"seed {seed}"
            union.forget()
            assert union.union.state.table.size == 1
    assert chance.renames > 5
