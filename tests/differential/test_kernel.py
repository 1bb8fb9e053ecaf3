"""fuseunion against the kernel's overlayfs; see the package's essay."""

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
def test_kernel_overlay(arena: Arena, seed: int) -> None:
    """Outcomes, trees and inode numbers are those of overlayfs, and each side reads the other's upper."""
    with lowers_of(arena, seed, hard_links=False) as lowers:
        check(arena, lowers, Oracle.KERNEL, seed, STEPS)
