"""More lowers than a small limit of descriptors seems to allow: everything is found, and can be changed.

The limit is set for the process that mounts, which an ordinary user cannot raise again.
"""

from __future__ import annotations

import contextlib
import os
import resource

import pytest

from tests.support import processes
from tests.support.arena import Arena
from tests.support.layers import File, Name, Node

STEP = 20
"""Every so many-th layer has names that are looked at one by one: each costs a look into all layers above."""

SIZES = [
    pytest.param(500, 1024, id="500-1024"),
    pytest.param(240, 512, id="240-512", marks=pytest.mark.stress),
    pytest.param(360, 512, id="360-512", marks=pytest.mark.stress),
]


@pytest.mark.actors("user")
@pytest.mark.limit(180)
@pytest.mark.parametrize(("lowers", "limit"), SIZES)
def test_many_lowers_with_few_descriptors(arena: Arena, lowers: int, limit: int) -> None:
    """Each layer has a part of one directory, and some have one of their own, and a file that the topmost hides."""
    some = range(0, lowers, STEP)
    made = []
    for number in range(lowers):
        description: dict[Name, Node] = {f"common/sub/{number}": File(b"%d" % number)}
        if number in some:
            description |= {
                "topmost": File(b"%d" % number),
                f"own{number}/sub/file": File(b"%d" % number),
            }
        made.append(arena.lower(description))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with arena.mount(*made) as mount:
        for _ in range(2):
            assert sorted(os.listdir(mount / "common/sub")) == sorted(map(str, range(lowers)))
            assert (mount / "topmost").read_bytes() == b"0"
            for number in some:
                assert (mount / f"common/sub/{number}").read_bytes() == b"%d" % number
                assert (mount / f"own{number}/sub/file").read_bytes() == b"%d" % number
        for number in some:
            (mount / f"common/sub/{number}").write_bytes(b"changed")
            (mount / f"own{number}").rename(mount / f"moved{number}")
        with contextlib.ExitStack() as held:
            for number in some:
                held.enter_context(open(mount / f"common/sub/{number}", "rb"))
            count = len(processes.descriptors(mount.daemon))
        print(f"{lowers} lowers, limit {limit}: {count} descriptors with {len(some)} files open")
        assert count < limit - len(some), "nothing is left for what comes"
    with arena.mount(*made) as mount:
        assert {(mount / f"common/sub/{number}").read_bytes() for number in some} == {b"changed"}
        assert (mount / f"moved{some[-1]}/sub/file").read_bytes() == b"%d" % some[-1]
        assert len(os.listdir(mount / "common/sub")) == lowers
