"""fuseunion against a plain directory: POSIX without a union, which fuseunion's improvements are meant to reach."""

from __future__ import annotations

import os

import pytest

from tests.differential.known_differences import Oracle
from tests.differential.lockstep import check
from tests.differential.stage import lowers_of
from tests.support.arena import Arena

SEEDS = range(int(os.environ.get("FUSEUNION_SEEDS", "16")))
STEPS = 120


@pytest.mark.actors("root")
@pytest.mark.limit(150)
@pytest.mark.parametrize("seed", SEEDS)
def test_plain_directory(arena: Arena, seed: int) -> None:
    """Outcomes, trees, link groups and link counts are those of a copy of the merged tree."""
    with lowers_of(arena, 1000 + seed, hard_links=True) as lowers:
        check(arena, lowers, Oracle.PLAIN, 1000 + seed, STEPS)
