"""No descriptor stays cached for a directory that nobody knows any more: it was forgotten, or only passed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.inprocess import InProcess, in_process
from tests.support.layers import Dir, File, Whiteout, build

TREES = 20


def _rename(union: InProcess) -> None:
    """Each is a tree of the lower, which leaves it, with a whiteout that hides nothing any more."""
    for number in range(TREES):
        union.rename(f"tree{number}", f"moved{number}")


def _rename_and_look_again(union: InProcess) -> None:
    """What was moved finds its numbers again by its path in the lower."""
    _rename(union)
    union.forget()
    union.tree()


@pytest.mark.parametrize("work", [_rename, _rename_and_look_again])
def test_nothing_stays_open(tmp_path: Path, work: Callable[[InProcess], None]) -> None:
    lower = build(tmp_path / "lower", {f"tree{number}/deep/er/file": File(b"x") for number in range(TREES)})
    upper = build(
        tmp_path / "upper",
        {f"tree{number}/deep/hidden": Whiteout() for number in range(TREES)} if os.geteuid() == 0 else {"new": Dir()},
    )
    (tmp_path / "work").mkdir()
    with in_process([lower], upper, tmp_path / "work") as union:
        union.tree()
        union.forget()
        before = _open_below(tmp_path)
        work(union)
        union.forget()
        assert (union.union.known, _open_below(tmp_path)) == (1, before)


def _open_below(top: Path) -> list[str]:
    """What this process has open there, but for the work directory."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        if target.startswith(f"{top}/") and not target.startswith(f"{top}/work"):
            found.append(target)
    return sorted(found)
