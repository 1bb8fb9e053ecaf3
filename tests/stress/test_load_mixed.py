"""64 processes at once, each busy in a directory of its own and among the others in one that all share.

In its own directory a process meets no error, and finds what it left (tests/support/own_tree.py); in the shared one it
meets only what a lost race explains. After each round the kernel forgets all it knows: then the daemon knows the root
alone, and what it holds is what it held after the round before.

The seed is in each failure. FUSEUNION_STRESS_LOAD says how many seconds the long form takes (600).
"""

from __future__ import annotations

import collections
import errno
import functools
import itertools
import os
import pickle
import random
import time
from pathlib import Path

import pytest

from tests.support import tree
from tests.support.arena import Arena
from tests.support.crowd import run_at_once
from tests.support.layers import Dir, File, Link, Name, Node
from tests.support.own_tree import OwnTree, lower_files
from tests.support.usage import Usage, counts, forget, usage
from tests.trust.race import LOST_RACES, NAMES, STEPS_OF

PROCESSES = 64
LONG = float(os.environ.get("FUSEUNION_STRESS_LOAD", "600"))
SHORT = 4.0
ROUNDS = 15
GROWTH_KIB = 4096
SHARED = 0.2
"""The part of the steps that goes to the directory that all share."""

SIZES = [
    pytest.param(SHORT, 1, id="slice", marks=pytest.mark.limit(120.0)),
    pytest.param(LONG, ROUNDS, id="long", marks=[pytest.mark.stress, pytest.mark.limit(3 * LONG + 600.0)]),
]


def _layer() -> dict[Name, Node]:
    files: dict[Name, Node] = {"shared": Dir(mode=0o777), "shared/sub": Dir(mode=0o777)}
    for name in NAMES[:3]:
        files[f"shared/{name}"] = File(name.encode() * 500)
    files["shared/sub/two"] = Link("shared/one")
    for number in range(PROCESSES):
        files |= {f"own{number}/{path}": File(data, mode=0o644) for path, data in lower_files(number).items()}
    return files


def _work(top: Path, state: Path, number: int, seed: int, end: float) -> None:
    """One process of one round; what it did, and the model of its directory, are left at `state`."""
    rng = random.Random(seed)
    own, ends = pickle.loads(state.read_bytes())
    mine, shared = top / f"own{number}", top / "shared"
    own.check(mine)
    for step in itertools.count():
        if time.monotonic() > end:
            break
        if rng.random() < SHARED:
            one, other = (shared / rng.choice(["", "sub"]) / rng.choice(NAMES) for _ in range(2))
            try:
                rng.choice(STEPS_OF)(one, other, rng)
                ends["shared"] += 1
            except OSError as error:
                if error.errno not in LOST_RACES:
                    raise AssertionError(f"seed {seed}, step {step} on {one}, {other}: {error}") from error
                ends[errno.errorcode[error.errno]] += 1
        else:
            try:
                ends[own.step(mine, rng)] += 1
            except (OSError, AssertionError) as error:
                raise AssertionError(f"seed {seed}, step {step} in {mine}: {error}") from error
    own.check(mine)
    state.write_bytes(pickle.dumps((own, ends)))


def _round(arena: Arena, top: Path, seed: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    run_at_once([
        functools.partial(_work, top, arena.root / f"state{number}", number, seed * PROCESSES + number, end)
        for number in range(PROCESSES)
    ])  # fmt: skip


@pytest.mark.actors("root")
@pytest.mark.parametrize(("seconds", "rounds"), SIZES)
def test_mixed_operations(arena: Arena, seconds: float, rounds: int) -> None:
    """No error, no file torn or lost, and after every round as much memory and as many descriptors as before it."""
    seed = random.SystemRandom().randrange(10**6)
    lower = arena.lower(_layer())
    for number in range(PROCESSES):
        (arena.root / f"state{number}").write_bytes(
            pickle.dumps((OwnTree.of(lower_files(number)), collections.Counter[str]()))
        )
    with arena.mount(lower) as mount:
        idle = usage(mount)
        seen: list[Usage] = []
        for number in range(rounds):
            _round(arena, mount.merged, seed + number, seconds / rounds)
            mount.assert_idle()
            forget(mount)
            seen.append(usage(mount))
        total: collections.Counter[str] = collections.Counter()
        for number in range(PROCESSES):
            own, ends = pickle.loads((arena.root / f"state{number}").read_bytes())
            own.check(mount / f"own{number}")
            total.update(ends)
        print(f"seed {seed}: {PROCESSES} processes, {total.total()} steps: {dict(total)}; idle {idle}, then {seen}")
        assert total.total() > PROCESSES * seconds, "hardly anything happened"
        assert counts(mount)[1] == 0, "a file is held open"
        _assert_flat(idle, seen)
        before = tree.snapshot(mount.merged)
    with arena.mount(lower) as mount:
        assert not tree.differences(before, tree.snapshot(mount.merged)), f"seed {seed}: after a remount"


def _assert_flat(idle: Usage, seen: list[Usage]) -> None:
    """Nothing but memory stays from a round; and memory, once the first rounds filled what is kept, does not grow."""
    for look in seen:
        assert (look.inodes, look.handles) == (idle.inodes, idle.handles), f"idle {idle}, then {seen}"
        assert look.descriptors <= idle.descriptors + 2, f"idle {idle}, then {seen}"
    settled = seen[len(seen) // 3 :]
    early, late = settled[: len(settled) // 2], settled[len(settled) // 2 :]
    if early:
        growth = max(look.resident for look in late) - max(look.resident for look in early)
        assert growth < GROWTH_KIB, f"memory grew by {growth} KiB: {seen}"
