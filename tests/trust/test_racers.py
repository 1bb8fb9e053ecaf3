"""Many processes that get in each other's way, on few names, over a lower with links and directories.

After they end, or after the daemon was killed in the middle of it, nothing may have gone wrong that a plain directory
would not have: no error but those that a race explains, a tree that can be read and is the same after a remount, no
descriptor held, and the kernel's overlayfs shows it too.

The seed is in each failure; FUSEUNION_STRESS=1 runs 16 processes for a longer time and prints what they did.
"""

from __future__ import annotations

import collections
import json
import os
import random
import sys
import traceback
from pathlib import Path

import pytest

from tests.conftest import STRESS_VARIABLE
from tests.support import tree
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.trust import race

LONG = bool(os.environ.get(STRESS_VARIABLE))
PROCESSES, STEPS, KILLS = (16, 15_000, 60) if LONG else (4, 400, 4)


@pytest.mark.limit(1800.0 if LONG else 90.0)
def test_racing_processes(arena: Arena) -> None:
    seed = random.SystemRandom().randrange(10**6)
    lower = arena.lower(race.lower())
    with arena.mount(lower) as mount:
        assert _wait(_start(arena, mount.merged, seed)) == [0] * PROCESSES, f"seed {seed}"
        race.open_up(mount.merged)
        before = tree.snapshot(mount.merged)
    total: collections.Counter[str] = collections.Counter()
    for process in range(PROCESSES):
        total.update(json.loads((arena.root / f"ends{process}").read_text()))
    print(f"seed {seed}: {PROCESSES} processes, {sum(total.values())} steps: {dict(total)}")
    assert total["done"] > PROCESSES * STEPS // 20, "hardly anything happened"
    _judge(arena, lower, before, f"seed {seed}")


def _start(arena: Arena, top: Path, seed: int, progress: int | None = None) -> list[int]:
    """Start the processes; each leaves what it did in a file. Returns their ids."""
    started = []
    for process in range(PROCESSES):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                ends = race.race(top, seed + process, STEPS, progress)
                (arena.root / f"ends{process}").write_text(json.dumps(ends))
                code = 0
            except BaseException:
                traceback.print_exc()  # the test says only that it failed
                raise
            finally:
                sys.stderr.flush()
                os._exit(code)
        started.append(pid)
    return started


def _wait(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _judge(arena: Arena, lower: Path, expected: tree.Tree, seed: str) -> None:
    """The next mount shows the tree, and so does the kernel's overlayfs."""
    with arena.mount(lower) as mount:
        assert not tree.differences(expected, tree.snapshot(mount.merged)), f"{seed}: after a remount"
    if arena.actor.role is Role.ROOT:
        # Not what hard links over the layers are: overlayfs without its index takes their names for files of their own.
        fields = tuple(field for field in tree.SEEN if field != "links")
        with arena.kernel(lower, upper=arena.upper) as kernel:
            assert not tree.differences(expected, tree.snapshot(kernel.merged), fields), f"{seed}: overlayfs"


@pytest.mark.limit(1800.0 if LONG else 90.0)
def test_killed_in_the_middle_of_a_race(arena: Arena) -> None:
    """kill -9, again and again on what the one before left: the next mount works, cleans up, and shows one tree."""
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    lower = arena.lower(race.lower())
    for kill in range(KILLS):
        mount = arena.mount(lower)
        mount.start()
        reader, writer = os.pipe()
        pids = _start(arena, mount.merged, seed + kill * PROCESSES, writer)
        os.close(writer)
        left = rng.randrange(1, PROCESSES * 100)
        with open(reader, "rb", buffering=0) as progress:
            while left > 0 and (done := progress.read(left)):
                left -= len(done)
            mount.kill()
            while progress.read(1 << 16):
                pass
        assert _wait(pids) == [0] * PROCESSES, f"seed {seed}, kill {kill}"
        with arena.mount(lower) as again:
            race.open_up(again.merged)
            before = tree.snapshot(again.merged)
        _judge(arena, lower, before, f"seed {seed}, kill {kill}")
