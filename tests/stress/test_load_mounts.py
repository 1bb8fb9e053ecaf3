"""Many mounts alive at once, over one lower, all used at the same time: each keeps what is its own."""

from __future__ import annotations

import contextlib
import functools
import random
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.arena import Arena
from tests.support.crowd import run_at_once
from tests.support.layers import File
from tests.support.mounts import FuseunionMount
from tests.support.own_tree import OwnTree, lower_files
from tests.support.usage import usage

STEPS = 300

SIZES = [
    pytest.param(8, id="slice"),
    pytest.param(200, id="long", marks=[pytest.mark.stress, pytest.mark.limit(900.0)]),
]


def _work(top: Path, seed: int) -> None:
    """What one process does in one mount."""
    rng = random.Random(seed)
    own = OwnTree.of(lower_files(0))
    for step in range(STEPS):
        try:
            own.step(top, rng)
        except (OSError, AssertionError) as error:
            raise AssertionError(f"seed {seed}, step {step} in {top}: {error}") from error
    own.check(top)


@pytest.mark.actors("root")
@pytest.mark.parametrize("number", SIZES)
def test_many_at_once(arena: Arena, number: int) -> None:
    seed = random.SystemRandom().randrange(10**6)
    lower = arena.lower({path: File(data, mode=0o644) for path, data in lower_files(0).items()})
    with contextlib.ExitStack() as stack:
        mounts: list[FuseunionMount] = []
        for index in range(number):
            # Each in a directory of its own: what one leaves beside its upper is not taken for another's.
            upper = arena.directory(f"{index}") / "upper"
            mounts.append(stack.enter_context(arena.mount(lower, upper=upper, merged=f"{index}/merged")))
        assert len(processes.with_token(arena.place.token)) == number
        run_at_once([functools.partial(_work, mount.merged, seed + index) for index, mount in enumerate(mounts)])
        looks = [usage(mount) for mount in mounts]
        resident = [look.resident for look in looks]
        print(f"seed {seed}: {number} mounts, {number * STEPS} steps, {min(resident)} to {max(resident)} KiB each")
        assert all(look.handles == 0 for look in looks), f"seed {seed}: {looks}"
        assert max(resident) < 2 * min(resident), f"seed {seed}: {looks}"
