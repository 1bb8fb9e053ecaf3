"""The race of test_racers.py while the daemon's system calls fail at random, also those that take back what was begun.

Nobody can keep books then: what fails twice may be half done. But the mount lives, a caller gets an error that a
filesystem may give, the lower stays, and what the live mount shows is what lies on disk. But for inode
numbers: where no mark can be written on a copy, it gets another number at the next mount (docs/on-disk-format.md); and
for counts of links: a second name that could not be removed from work counts until the next mount.

`FUSEUNION_SEED=N make test ARGS="-k racing_errors"` repeats the steps and the dice; FUSEUNION_STRESS=1 runs more.
"""

from __future__ import annotations

import collections
import json
import os
import random
from pathlib import Path

import pytest

from tests.conftest import STRESS_VARIABLE
from tests.support import tree
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.faulty_daemon import INJECTED, TOLERATED, Faults, without_times
from tests.support.mounts import FuseunionMount
from tests.trust import race

LONG = bool(os.environ.get(STRESS_VARIABLE))
ROUNDS, PROCESSES, STEPS = (10, 6, 800) if LONG else (2, 3, 200)
SEED = int(os.environ.get("FUSEUNION_SEED", random.SystemRandom().randrange(1 << 30)))
RATES = (0.01, 0.05, 0.2)


def _run(top: Path, results: Path, first: int) -> collections.Counter[str]:
    """All processes, to their end."""
    pids = []
    for process in range(PROCESSES):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                ends = race.race(top, first + process, STEPS, also=INJECTED)
                (results / str(process)).write_text(json.dumps(ends))
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * PROCESSES, f"seed {SEED}: {codes}"
    total: collections.Counter[str] = collections.Counter()
    for process in range(PROCESSES):
        total.update(json.loads((results / str(process)).read_text()))
    return total


@pytest.mark.actors("root", "user")
@pytest.mark.limit(3000.0 if LONG else 120.0)
def test_racing_errors(arena: Arena) -> None:
    lower = arena.lower(race.lower())
    faults = Faults(arena.directory("faults"), SEED)
    rng = random.Random(SEED)
    mount = FuseunionMount(
        faults.place(arena.place), [lower], arena.upper, arena.directory("merged"), tolerated=TOLERATED, faulty=True
    )
    total: collections.Counter[str] = collections.Counter()
    with mount:
        for number in range(ROUNDS):
            rate = rng.choice(RATES)
            faults.begin(rate)
            try:
                total += _run(mount.merged, arena.directory("results"), SEED + number * PROCESSES)
            finally:
                faults.end()
            race.open_up(mount.merged)
            before = tree.snapshot(mount.merged)
            mount.stop()
            mount.start()
            found = tree.differences(without_times(before), without_times(tree.snapshot(mount.merged)))
            assert not found, f"seed {SEED}, round {number}, rate {rate}: after a remount:\n  " + "\n  ".join(found)
    if arena.actor.role is Role.ROOT:
        # Without what hard links over the layers are, as in test_racers.py.
        fields = tuple(field for field in tree.SEEN if field != "links")
        with arena.kernel(lower, upper=arena.upper) as kernel:
            found = tree.differences(without_times(before), without_times(tree.snapshot(kernel.merged)), fields)
        assert not found, f"seed {SEED}: overlayfs shows otherwise:\n  " + "\n  ".join(found)
    counts = faults.counts()
    faults.close()
    print(f"seed {SEED}: {ROUNDS} rounds of {PROCESSES} processes: {dict(total)}; faults: {counts}")
    assert total["done"] and sum(counts.values()) > 5, "hardly anything happened"
