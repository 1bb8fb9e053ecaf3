"""Random uppers: what goes out as an archive comes back, and what is made of them shows what a mount shows."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.layers.commands import done
from tests.layers.uppers import LOWER, OPERATIONS, made, seen
from tests.support.inprocess import in_process
from tests.support.layers import build
from tests.support.tree import assert_same, snapshot

Shown = dict[str, tuple[object, ...]]
LIMITS = {
    "deadline": None,
    "phases": [phase for phase in Phase if phase.name != "shrink"],
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
}


def shown(directory: Path) -> Shown:
    """What a mount of one directory alone shows."""
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch, in_process([directory], None, None) as union:
        assert scratch
        return union.tree()


def without_counts(tree: Shown) -> Shown:
    """Without the counts of links: only the index in the work directory knows how many of a lower's are left."""
    return {path: facts if len(facts) < 6 else facts[:5] + facts[6:] for path, facts in tree.items()}


def differences(expected: Shown, got: Shown) -> list[str]:
    return [
        f"{path}: {got.get(path)} instead of {expected.get(path)}"
        for path in sorted({*expected, *got})
        if expected.get(path) != got.get(path)
    ]


def _check(root: Path, operations: Sequence[tuple[object, ...]], redirect: bool, metacopy: bool) -> None:
    lower = build(root / "lower", LOWER)
    upper = made(root, lower, operations, redirect_dir=redirect, metacopy=metacopy)
    before = seen(lower, upper, root / "scratch")
    # An archive of it is an upper that shows the same, and makes the same archive.
    done("export", upper, "--lower", lower, "-o", root / "layer.tar")
    done("import", "--upper", root / "layer.tar", root / "again")
    assert not differences(without_counts(before), without_counts(seen(lower, root / "again", root / "scratch")))
    done("export", root / "again", "-o", root / "again.tar")
    assert (root / "again.tar").read_bytes() == (root / "layer.tar").read_bytes()
    # One plain tree of it, over which nothing is changed.
    done("commit", lower, upper, root / "new")
    assert not differences(before, shown(root / "new"))
    (root / "empty").mkdir()
    assert done("diff", root / "empty", "--lower", root / "new", "--exit-code") == ""
    # Pushed down into a copy of the lower, and taken back.
    subprocess.run(["cp", "-a", lower, root / "copy"], check=True)
    original = snapshot(root / "copy")
    done("apply", upper, root / "copy")
    # What it had has another name there until it is forgotten.
    assert not differences(without_counts(before), without_counts(shown(root / "copy")))
    done("apply", "--undo", root / "copy")
    assert_same(original, snapshot(root / "copy"), "after --undo")
    left = {path.name for path in root.iterdir()}
    assert not {name for name in left if "unfinished" in name or "apply" in name}, left


@settings(max_examples=15, **LIMITS)  # type: ignore[arg-type]
@given(OPERATIONS, st.booleans(), st.booleans())
def test_round_trips(operations: Sequence[tuple[object, ...]], redirect: bool, metacopy: bool) -> None:
    root = Path(tempfile.mkdtemp(prefix="fuseunion-test-", dir="/dev/shm"))  # where nothing has to be synced
    try:
        _check(root, operations, redirect, metacopy)
    finally:
        shutil.rmtree(root)


@pytest.mark.stress
@settings(max_examples=1500, **LIMITS)  # type: ignore[arg-type]
@given(OPERATIONS, st.booleans(), st.booleans())
def test_round_trips_for_long(operations: Sequence[tuple[object, ...]], redirect: bool, metacopy: bool) -> None:
    test_round_trips.hypothesis.inner_test(operations, redirect, metacopy)  # type: ignore[attr-defined]
