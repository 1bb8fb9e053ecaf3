"""kill -9 before every single change that an operation makes: the merged tree is as before, or as after.

Each case is one operation on a small stack of layers (stage.py). It runs in a child that dies before its first change,
before its second, and so on until it survives. After each death the union is opened again, as the next mount would do.

What touches owners and modes is done three times: with real ones, stored in attributes, and stored in the database.
"""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest

from fuseunion.linux import syscalls
from fuseunion.linux.os_error import os_error
from tests.model.stage import CASES, OPERATIONS, Stored, make_layers, opened, restore, save, tree
from tests.support.crash import run_until_change


@pytest.fixture(scope="module")
def all_layers(tmp_path_factory: pytest.TempPathFactory) -> dict[Stored, Path]:
    """The layers as they are before each operation."""
    made = {}
    for stored in Stored:
        base = made[stored] = tmp_path_factory.mktemp("crash") / "layers"
        base.mkdir()
        make_layers(base, stored)
    return made


@pytest.mark.parametrize(("name", "stored"), CASES, ids=[f"{name}-{stored.value}" for name, stored in CASES])
def test_before_or_after(name: str, stored: Stored, all_layers: dict[Stored, Path], tmp_path: Path) -> None:
    _check(name, stored, all_layers[stored], tmp_path)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if "exchange" not in name])
def test_without_flags_of_renameat2(
    name: str, all_layers: dict[Stored, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on fuse2fs, and on NFS. A file that is renamed may have both names then."""
    real = syscalls.renameat2

    def without_flags(olddirfd: int, old: bytes, newdirfd: int, new: bytes, flags: int) -> None:
        if flags:
            raise os_error(errno.EINVAL)
        real(olddirfd, old, newdirfd, new, 0)

    monkeypatch.setattr(syscalls, "renameat2", without_flags)
    _check(name, Stored.NOT, all_layers[Stored.NOT], tmp_path, two_names=True)


Tree = dict[str, tuple[object, ...]]


def _with_both_names(now: Tree, before: Tree, after: Tree) -> bool:
    """Whether it is as after but for a file's old name, and the counts of links."""

    def counted_alike(tree: Tree) -> Tree:
        return {path: (*facts[:5], *facts[6:]) for path, facts in tree.items() if path not in before.keys() - after}

    kept = now.keys() & (before.keys() - after)
    return all(now[path][0] == stat.S_IFREG for path in kept) and counted_alike(now) == counted_alike(after)


def _check(name: str, stored: Stored, layers: Path, tmp_path: Path, *, two_names: bool = False) -> None:
    operation = OPERATIONS[name]
    save(layers, tmp_path)

    def act() -> None:
        with opened(layers, stored) as union:
            operation(union)

    def without_times(tree: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
        # Numbers of what is made anew differ from run to run, and so do the times of what is changed.
        return {path: tuple(f for f in facts if not isinstance(f, int) or f < 1 << 20) for path, facts in tree.items()}

    try:
        # Restored first: the database knows copies for what they are, and does not count for them.
        restore(layers, tmp_path)
        before = without_times(tree(layers, stored))
        restore(layers, tmp_path)
        act()
        after = without_times(tree(layers, stored))
        number = 0
        survived = False
        while not survived:
            restore(layers, tmp_path)
            survived = run_until_change(number, act)
            now = without_times(tree(layers, stored))
            if survived or (now != before and not (two_names and _with_both_names(now, before, after))):
                assert now == after, f"died before change {number}"
            number += 1
        assert number > 1, "the operation changed nothing"
    finally:
        restore(layers, tmp_path)
