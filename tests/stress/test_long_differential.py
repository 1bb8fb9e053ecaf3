"""The differential test with fresh seeds for as long as there is time; the seed of a failure is in its report."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from tests.differential.known_differences import Oracle
from tests.differential.lockstep import check
from tests.differential.stage import lowers_of
from tests.stress import SECONDS
from tests.support.arena import Arena

STEPS = 400


@pytest.mark.stress
@pytest.mark.actors("root")
@pytest.mark.limit(SECONDS + 300)
@pytest.mark.parametrize("oracle", list(Oracle), ids=lambda oracle: oracle.name.lower())
def test_fresh_seeds(arena: Arena, oracle: Oracle) -> None:
    """Sequences that nobody chose."""
    end = time.monotonic() + SECONDS
    first = random.SystemRandom().randrange(1 << 30)
    for seed in itertools.count(first):
        with lowers_of(arena, seed, hard_links=oracle is Oracle.PLAIN) as lowers:
            check(arena, lowers, oracle, seed, STEPS)
        if time.monotonic() > end:
            break
