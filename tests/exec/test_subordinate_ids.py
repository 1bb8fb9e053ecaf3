"""Which ids an ordinary user with subordinate ones has inside."""

from __future__ import annotations

import pytest

from fuseunion.contained.ids import Ranges, _ranges
from tests.exec.stage import Stage, tree
from tests.support.arena import Arena


@pytest.mark.actors("user")
def test_owners_are_real_ones(arena: Arena, stage: Stage) -> None:
    lower = arena.lower(tree())
    script = """
        chown 33:44 /data/file; touch /data/new; chown 65534:65534 /data/new; chmod 4755 /data/file
        stat -c %u:%g:%a /data/file /data/new /etc/passwd /
    """
    assert stage.shell([lower, arena.upper], script) == ["33:44:4755", "65534:65534:644", "0:0:644", "0:0:755"]
    first = arena.actor.user.subuids.first
    assert (arena.upper / "data/file").stat().st_uid == first + 32
    assert (arena.upper / "data/new").stat().st_uid == first + 65533
    assert stage.shell([lower, arena.upper], "stat -c %u /data/file /data/new") == ["33", "65534"]


@pytest.mark.actors("user")
def test_what_root_of_the_machine_owns_is_roots(arena: Arena, stage: Stage) -> None:
    """And not nobody's, to whom root of a user namespace may do nothing."""
    assert stage.shell([arena.lower(tree()), arena.upper], "stat -c %u /usr; cd /; stat -c %u .") == ["65534", "0"]
    done = arena.place.fuseunion("exec", "/", "--", "sh", "-euc", "stat -c %u /etc/passwd; echo x >>/etc/passwd")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_maps() -> None:
    """Nobody has another number in the outer namespace, and every range of the inner lies in one of the outer."""
    ranges = _ranges("uid", 1000, [(100_000, 65_536)])
    assert ranges == Ranges(
        "uid",
        ((0, 1000, 1), (1, 100_000, 65_533), (4_000_000_000, 165_533, 1), (65_535, 165_534, 2)),
        ((0, 0, 1), (1, 1, 65_533), (65_534, 4_000_000_000, 1), (65_535, 65_535, 2)),
    )
    assert not ranges.is_single
    few = _ranges("gid", 7, [(500, 10), (900, 5)])
    assert few.outer == ((0, 7, 1), (1, 500, 10), (11, 900, 5))
    assert few.inner == ((0, 0, 1), (1, 1, 10), (11, 11, 5))
    many = _ranges("uid", 7, [(1000, 65_533), (200_000, 10)])
    assert many.outer[2:] == ((4_000_000_000, 200_000, 1), (65_535, 200_001, 9))
