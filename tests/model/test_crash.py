"""kill -9 before every single change that an operation makes: the merged tree is as before, or as after.

Each case is one operation on a small stack of layers (stage.py). It runs in a child that dies before its first change,
before its second, and so on until it survives. After each death the union is opened again, as the next mount would do.

What touches owners and modes is done three times: with real ones, stored in attributes, and stored in the database.
"""

from __future__ import annotations

from pathlib import Path

import pytest

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
    operation, layers = OPERATIONS[name], all_layers[stored]
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
            if survived or now != before:
                assert now == after, f"died before change {number}"
            number += 1
        assert number > 1, "the operation changed nothing"
    finally:
        restore(layers, tmp_path)
