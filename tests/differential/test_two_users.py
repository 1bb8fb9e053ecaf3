"""Two ordinary users and root in one mount of root's, against the kernel's overlayfs.

The users are no members of each other's group; the first is a member of a third group, which owns a good part of the
layers. Modes are drawn from all there are, directories are sticky or set-group-ID, and ACLs name users and groups. So
what each may do is decided by another rule from step to step, and both sides have to decide alike: the same errno, and
the same owner, mode and ACL of what was made or changed.

Numbers from 0 on are run; FUSEUNION_STRESS=1 runs more of them, from a random one on, and prints a line of counts. The
number of a failure is in its report: `FUSEUNION_SEED=N make test ARGS="-k two_users"` repeats it.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import random

import pytest

from tests.conftest import STRESS_VARIABLE
from tests.differential.generator import Generator
from tests.differential.known_differences import Oracle
from tests.differential.lockstep import check
from tests.differential.operations import Call, Operation
from tests.differential.recipes import layers
from tests.support import acl
from tests.support.acl import Rule, Tag
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Name, Node, Opaque, Whiteout

LONG = bool(os.environ.get(STRESS_VARIABLE))
RUNS, STEPS = (60, 200) if LONG else (3, 100)
FIRST = int(os.environ.get("FUSEUNION_SEED", random.SystemRandom().randrange(1 << 30) if LONG else 0))

MEMBER, STRANGER, SHARED = 1000, 1001, 2000
"""Two users (each with a group of the same number), and the group that the first is a member of besides."""
IDS = (0, MEMBER, MEMBER, STRANGER, STRANGER, SHARED)


def _mode(rng: random.Random, *, directory: bool) -> int:
    """Any permissions; a directory mostly lets somebody in, or nothing would ever happen in it."""
    mode = rng.randrange(0o1000)
    if rng.random() < 0.85:
        mode |= rng.choice((0o755, 0o775, 0o777, 0o777) if directory else (0o000, 0o600, 0o060, 0o006, 0o666))
    if rng.random() < 0.3:
        mode |= rng.choice((0o1000, 0o2000, 0o3000) if directory else (0o2000, 0o4000, 0o6000))
    return mode


def _access_list(rng: random.Random) -> bytes:
    rules = [Rule(Tag.USER_OBJ, rng.choice((7, 7, rng.randrange(8))))]
    rules += [Rule(Tag.USER, rng.randrange(8), who) for who in (MEMBER, STRANGER) if rng.random() < 0.5]
    rules += [Rule(Tag.GROUP_OBJ, rng.randrange(8))]
    rules += [Rule(Tag.GROUP, rng.randrange(8), who) for who in (STRANGER, SHARED) if rng.random() < 0.5]
    return acl.encode(*rules, Rule(Tag.MASK, rng.choice((7, rng.randrange(8)))), Rule(Tag.OTHER, rng.randrange(8)))


class TwoUsersGenerator(Generator):
    """Draws operations of two users, and of root now and then."""

    def __init__(self, seed: int, root: bytes) -> None:
        super().__init__(seed, root)
        self._who = random.Random(f"who {seed}")

    def draw(self) -> Operation:
        """The next operation."""
        drawn, rng = super().draw(), self._who
        change: dict[str, object] = {}
        if drawn.call is Call.REMOVEXATTR and drawn.name == acl.ACCESS:
            # From who is not in the group overlayfs then takes the set-group-ID bit too (docs/differences.md).
            change |= {"uid": 0, "groups": ()}
        elif drawn.call is not Call.REMOUNT:
            uid = rng.choice((0, MEMBER, MEMBER, MEMBER, STRANGER, STRANGER, STRANGER))
            change |= {"uid": uid, "groups": (SHARED,) if uid == MEMBER else ()}
        if drawn.call in (Call.CREATE, Call.CHMOD, Call.FD_CHMOD, Call.MKDIR) and rng.random() < 0.7:
            change["number"] = _mode(rng, directory=drawn.call is not Call.CREATE and rng.random() < 0.5)
        elif drawn.call in (Call.CHOWN, Call.FD_CHOWN):
            change |= {"number": rng.choice((-1, -1, *IDS)), "second": rng.choice((-1, *IDS))}
        elif drawn.name in (acl.ACCESS, acl.DEFAULT) and drawn.data:
            change["data"] = _access_list(rng)
        return dataclasses.replace(drawn, **change)  # type: ignore[arg-type]


def _owned(seed: int) -> list[dict[Name, Node]]:
    """Layers of everybody, topmost first."""
    rng = random.Random(f"owned {seed}")
    found = layers(seed, hard_links=False)
    for description in found:
        for path, node in description.items():
            if isinstance(node, Whiteout):
                continue
            directory = isinstance(node, Dir | Opaque)
            attributes = {name: value for name, value in node.xattrs.items() if name not in (acl.ACCESS, acl.DEFAULT)}
            if isinstance(node, File | Dir | Opaque) and rng.random() < 0.25:
                attributes[acl.ACCESS] = _access_list(rng)
            if directory and rng.random() < 0.25:
                attributes[acl.DEFAULT] = _access_list(rng)
            description[path] = dataclasses.replace(
                node, mode=_mode(rng, directory=directory), uid=rng.choice(IDS), gid=rng.choice(IDS), xattrs=attributes
            )
        description[b"."] = Dir(mode=rng.choice((0o777, 0o1777, 0o3777, 0o2775)), uid=0, gid=SHARED)
    return found


@pytest.mark.actors("root")
@pytest.mark.limit(3000 if LONG else 200)
def test_two_users(arena: Arena) -> None:
    """Outcomes and trees are those of overlayfs, whoever asks."""
    answers: collections.Counter[str] = collections.Counter()
    for seed in range(FIRST, FIRST + RUNS):
        lowers = [arena.lower(made, f"seed{seed}-{number}") for number, made in enumerate(_owned(seed))]
        answers += check(arena, lowers, Oracle.KERNEL, seed, STEPS, TwoUsersGenerator)
    print(f"seeds {FIRST}-{FIRST + RUNS - 1}: {sum(answers.values())} operations: {dict(answers)}")
    assert answers["EACCES"] and answers["EPERM"], "nobody was refused anything"
    assert answers["ok"] > sum(answers.values()) // 10, "hardly anything was allowed"
