"""kill -9 before every single change that an operation makes: the merged tree is as before, or as after.

Each case is one operation on a small stack of layers. It runs in a child that dies before its first change, before its
second, and so on until it survives. After each death the union is opened again, as the next mount would do.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fuseunion.core.attributes import Change
from tests.support.crash import run_until_change
from tests.support.inprocess import InProcess, in_process

Operation = Callable[[InProcess], None]

OPERATIONS: dict[str, Operation] = {
    "write to a lower file": lambda u: u.write("/d/file", b"changed"),
    "write to a hard-linked lower file": lambda u: u.write("/link-a", b"changed"),
    "truncate a lower file": lambda u: u.setattr("/d/file", Change(size=0)),
    "chmod of a lower file": lambda u: u.setattr("/d/file", Change(mode=0o600)),
    "chmod of a lower directory": lambda u: u.setattr("/d/sub", Change(mode=0o700)),
    "chown of a lower symbolic link": lambda u: u.setattr("/d/symlink", Change(uid=7)),
    "unlink of a lower file": lambda u: u.unlink("/d/file"),
    "unlink of a hard-linked lower file": lambda u: u.unlink("/link-a"),
    "unlink of an upper file over a lower one": lambda u: u.unlink("/both"),
    "unlink of an upper file": lambda u: u.unlink("/upper-only"),
    "rmdir of a lower directory": lambda u: u.rmdir("/empty"),
    "rmdir of a merged directory with whiteouts": lambda u: u.rmdir("/emptied"),
    "create": lambda u: u.create("/d/new"),
    "create over a whiteout": lambda u: u.create("/deleted"),
    "mkdir over a whiteout of a directory": lambda u: u.mkdir("/deleted-dir"),
    "symlink over a whiteout": lambda u: u.symlink("x", "/deleted"),
    "link of a lower file": lambda u: u.link("/d/file", "/d/second"),
    "link over a whiteout": lambda u: u.link("/upper-only", "/deleted"),
    "rename of a lower file": lambda u: u.rename("/d/file", "/moved"),
    "rename of a hard-linked lower file": lambda u: u.rename("/link-a", "/d/moved"),
    "rename over a lower file": lambda u: u.rename("/upper-only", "/d/file"),
    "rename over a whiteout": lambda u: u.rename("/upper-only", "/deleted"),
    "rename of a lower directory": lambda u: u.rename("/d", "/moved"),
    "rename of a lower directory over a whiteout": lambda u: u.rename("/d", "/deleted-dir"),
    "rename of a merged directory": lambda u: u.rename("/merged", "/d/moved"),
    "rename of a directory over an emptied one": lambda u: u.rename("/d", "/emptied"),
    "rename of an upper directory over a whiteout": lambda u: u.rename("/upper-dir", "/deleted-dir"),
    "exchange of a lower file and a merged directory": lambda u: u.rename("/d/file", "/merged", 2),
    "setxattr on a lower file": lambda u: u.setxattr("/d/file", b"user.x", b"y"),
}


def _make_layers(base: Path) -> None:
    lower = base / "lower"
    for directory in ("d/sub", "empty", "emptied", "merged/sub", "deleted-dir/inner"):
        (lower / directory).mkdir(parents=True)
    (lower / "d/file").write_bytes(b"content of a lower file")
    (lower / "d/sub/deep").write_bytes(b"deep")
    os.setxattr(lower / "d/file", "user.kept", b"value")
    (lower / "d/symlink").symlink_to("file")
    (lower / "link-a").write_bytes(b"one file")
    os.link(lower / "link-a", lower / "d/link-b")
    for name in ("both", "deleted", "merged/low", "emptied/gone"):
        (lower / name).write_bytes(name.encode())
    (base / "upper").mkdir()
    (base / "work").mkdir()
    with in_process([lower], base / "upper", base / "work") as union:
        union.write("/both", b"upper content")
        union.create("/upper-only", b"mine")
        union.mkdir("/upper-dir")
        union.create("/upper-dir/x", b"x")
        union.create("/merged/up", b"up")
        union.unlink("/deleted")
        union.unlink("/emptied/gone")
        union.rmdir("/deleted-dir/inner")
        union.rmdir("/deleted-dir")


def _tree(base: Path) -> dict[str, tuple[object, ...]]:
    with in_process([base / "lower"], base / "upper", base / "work") as union:
        return union.tree(numbers=True)


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layers as they are before each operation."""
    base = tmp_path_factory.mktemp("crash") / "layers"
    base.mkdir()
    _make_layers(base)
    return base


def _restore(layers: Path, upper: Path, work: Path) -> None:
    """Bring upper and work back to what they were; the lower stays the same inodes."""
    for saved, current in ((upper, layers / "upper"), (work, layers / "work")):
        shutil.rmtree(current)
        # cp keeps devices, xattrs, times and hard links, which shutil does not.
        assert os.spawnlp(os.P_WAIT, "cp", "cp", "-a", str(saved), str(current)) == 0


@pytest.mark.parametrize("name", OPERATIONS)
def test_before_or_after(name: str, layers: Path, tmp_path: Path) -> None:
    operation = OPERATIONS[name]
    saved_upper, saved_work = tmp_path / "upper", tmp_path / "work"
    for current, saved in ((layers / "upper", saved_upper), (layers / "work", saved_work)):
        assert os.spawnlp(os.P_WAIT, "cp", "cp", "-a", str(current), str(saved)) == 0

    def act() -> None:
        with in_process([layers / "lower"], layers / "upper", layers / "work") as union:
            operation(union)

    def without_times(tree: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
        # Numbers of what is made anew differ from run to run, and so do the times of what is changed.
        return {path: tuple(f for f in facts if not isinstance(f, int) or f < 1 << 20) for path, facts in tree.items()}

    try:
        before = without_times(_tree(layers))
        _restore(layers, saved_upper, saved_work)
        act()
        after = without_times(_tree(layers))
        number = 0
        survived = False
        while not survived:
            _restore(layers, saved_upper, saved_work)
            survived = run_until_change(number, act)
            now = without_times(_tree(layers))
            if survived or now != before:
                assert now == after, f"died before change {number}"
            number += 1
        assert number > 1, "the operation changed nothing"
    finally:
        _restore(layers, saved_upper, saved_work)
