"""Many processes that get in each other's way, on few names, over a lower with links and directories.

After they end, or after the daemon was killed in the middle of it, nothing may have gone wrong that a plain directory
would not have: no error but those that a race explains, a tree that can be read and is the same after a remount, no
descriptor held, and the kernel's overlayfs shows it too.

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
PROCESSES, STEPS, KILLS = (16, 15_000, 60) if LONG else (4, 400, 4)

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


GONE = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV})
"""What a mount answers whose daemon was killed."""


def _race(top: Path, seed: int, progress: int | None = None) -> collections.Counter[str]:
    """One process.

    :param progress: a pipe that gets a byte for every step
    :returns: how often each step ended in which way
    """
    rng = random.Random(seed)
    ends: collections.Counter[str] = collections.Counter()
    for number in range(STEPS):
        step = rng.choice(STEPS_OF)
        one, other = (top / rng.choice(DIRECTORIES) / rng.choice(NAMES) for _ in range(2))
        try:
            step(one, other, rng)
            ends["done"] += 1
        except OSError as error:
            if progress is not None and error.errno in GONE:
                break
            if error.errno not in LOST_RACES:
                raise AssertionError(f"seed {seed}, step {number} on {one}, {other}: {error}") from error
            ends[errno.errorcode[error.errno]] += 1
        if progress is not None:
            os.write(progress, b".")
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
        assert _wait(_start(arena, mount.merged, seed)) == [0] * PROCESSES, f"seed {seed}"
        _open_up(mount.merged)
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
                ends = _race(top, seed + process, progress)
                (arena.root / f"ends{process}").write_text(json.dumps(ends))
                code = 0
            finally:
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
    lower = arena.lower(_lower())
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
            _open_up(again.merged)
            before = tree.snapshot(again.merged)
        _judge(arena, lower, before, f"seed {seed}, kill {kill}")


def _open_up(top: Path) -> None:
    """Let everybody read what is to be compared; a mode is not what this test is about."""
    for directory, _, names in os.walk(top):
        os.chmod(directory, 0o755)
        for name in names:
            path = Path(directory, name)
            if not path.is_symlink():
                path.chmod(0o644)
