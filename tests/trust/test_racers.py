"""Many processes that get in each other's way, on few names, over a lower with links and directories.

Afterwards nothing may have gone wrong that a plain directory would not have: no error but those that a race explains, a
tree that can be read and is the same after a remount, no descriptor held, and the kernel's overlayfs shows it too.

The seed is in each failure; FUSEUNION_STRESS=1 runs 16 processes for a longer time and prints what they did.
"""

from __future__ import annotations

import collections
import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import STRESS_VARIABLE
from tests.support import tree
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Link, Name, Node, Symlink

LONG = bool(os.environ.get(STRESS_VARIABLE))
PROCESSES, STEPS = (16, 15_000) if LONG else (4, 400)

DIRECTORIES = ("", "a", "a/b", "c", "lower", "lower/sub")
NAMES = ("one", "two", "three", "sub")

LOST_RACES = frozenset({
    errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.ELOOP, errno.ENODATA,
    errno.EPERM, errno.EACCES, errno.EMLINK,
})  # fmt: skip
"""What another process may have made of a name; EINVAL: a directory into itself, EPERM: a link to a directory."""

Step = Callable[[Path, Path, random.Random], object]


def _write(one: Path, other: Path, rng: random.Random) -> None:
    with open(one, rng.choice(["ab", "wb", "r+b"])) as file:
        file.write(b"%d" % rng.randrange(10**9) * rng.randrange(1, 200))


def _read(one: Path, other: Path, rng: random.Random) -> None:
    one.read_bytes()


def _truncate(one: Path, other: Path, rng: random.Random) -> None:
    os.truncate(one, rng.randrange(5000))


def _attribute(one: Path, other: Path, rng: random.Random) -> None:
    if rng.random() < 0.7:
        os.setxattr(one, "user.race", b"%d" % rng.randrange(100), follow_symlinks=False)
    else:
        os.removexattr(one, "user.race", follow_symlinks=False)


STEPS_OF: tuple[Step, ...] = (
    _write,
    _read,
    _truncate,
    _attribute,
    lambda one, other, rng: one.unlink(),
    lambda one, other, rng: one.rename(other),
    lambda one, other, rng: one.rename(other),
    lambda one, other, rng: os.link(one, other, follow_symlinks=False),
    lambda one, other, rng: one.symlink_to(rng.choice(NAMES)),
    lambda one, other, rng: one.mkdir(),
    lambda one, other, rng: one.rmdir(),
    lambda one, other, rng: one.chmod(rng.choice([0o600, 0o644, 0o444, 0o700, 0o755])),
    lambda one, other, rng: os.utime(one, ns=(rng.randrange(10**18), rng.randrange(10**18))),
    lambda one, other, rng: os.listdir(one.parent),
    lambda one, other, rng: one.lstat(),
)


def _race(top: Path, seed: int) -> collections.Counter[str]:
    """One process. Returns: how often each step ended in which way."""
    rng = random.Random(seed)
    ends: collections.Counter[str] = collections.Counter()
    for number in range(STEPS):
        step = rng.choice(STEPS_OF)
        one, other = (top / rng.choice(DIRECTORIES) / rng.choice(NAMES) for _ in range(2))
        try:
            step(one, other, rng)
            ends["done"] += 1
        except OSError as error:
            if error.errno not in LOST_RACES:
                raise AssertionError(f"seed {seed}, step {number} on {one}, {other}: {error}") from error
            ends[errno.errorcode[error.errno]] += 1
    return ends


def _lower() -> dict[Name, Node]:
    files: dict[Name, Node] = {}
    for directory in ("lower", "lower/sub", "a", "c"):
        files[directory] = Dir(mode=0o755)
        for name in NAMES[:3]:
            files[f"{directory}/{name}"] = File(f"{directory} {name}".encode() * 50)
    files["lower/link"] = Link("lower/one")
    files["c/two"] = Symlink("one")
    return files


@pytest.mark.limit(1800.0 if LONG else 90.0)
def test_racing_processes(arena: Arena) -> None:
    seed = random.SystemRandom().randrange(10**6)
    lower = arena.lower(_lower())
    with arena.mount(lower) as mount:
        for process in range(PROCESSES):
            if os.fork() == 0:
                code = 1
                try:
                    ends = _race(mount.merged, seed + process)
                    (arena.root / f"ends{process}").write_text(json.dumps(ends))
                    code = 0
                finally:
                    os._exit(code)
        codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(PROCESSES)]
        assert codes == [0] * PROCESSES, f"seed {seed}"
        _open_up(mount.merged)
        before = tree.snapshot(mount.merged)
    total: collections.Counter[str] = collections.Counter()
    for process in range(PROCESSES):
        total.update(json.loads((arena.root / f"ends{process}").read_text()))
    print(f"seed {seed}: {PROCESSES} processes, {sum(total.values())} steps: {dict(total)}")
    assert total["done"] > PROCESSES * STEPS // 20, "hardly anything happened"
    with arena.mount(lower) as mount:
        assert not tree.differences(before, tree.snapshot(mount.merged)), f"seed {seed}: after a remount"
    if arena.actor.role is Role.ROOT:
        # Not what hard links over the layers are: overlayfs without its index takes their names for files of their own.
        fields = tuple(field for field in tree.SEEN if field != "links")
        with arena.kernel(lower, upper=arena.upper) as kernel:
            assert not tree.differences(before, tree.snapshot(kernel.merged), fields), f"seed {seed}: overlayfs"


def _open_up(top: Path) -> None:
    """Let everybody read what is to be compared; a mode is not what this test is about."""
    for directory, _, names in os.walk(top):
        os.chmod(directory, 0o755)
        for name in names:
            path = Path(directory, name)
            if not path.is_symlink():
                path.chmod(0o644)
