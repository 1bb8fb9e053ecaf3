"""What one of many processes does that get in each other's way: random steps on few names, over a lower with links."""

from __future__ import annotations

import collections
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

from tests.support.layers import Dir, File, Link, Name, Node, Symlink

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


GONE = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.EIO, errno.EXDEV})
"""What a mount answers whose daemon was killed; EIO where a page was to be read (mm/filemap.c, filemap_read_folio),
EXDEV where it was taken away between the two paths of a step."""


def race(
    top: Path, seed: int, steps: int, progress: int | None = None, also: frozenset[int] = frozenset()
) -> collections.Counter[str]:
    """One process.

    :param steps: how many
    :param progress: a pipe that gets a byte for every step
    :param also: errors that are no failure either
    :returns: how often each step ended in which way
    """
    rng = random.Random(seed)
    ends: collections.Counter[str] = collections.Counter()
    for number in range(steps):
        step = rng.choice(STEPS_OF)
        one, other = (top / rng.choice(DIRECTORIES) / rng.choice(NAMES) for _ in range(2))
        try:
            step(one, other, rng)
            ends["done"] += 1
        except OSError as error:
            if progress is not None and error.errno in GONE:
                break
            if error.errno not in LOST_RACES | also:
                raise AssertionError(f"seed {seed}, step {number} on {one}, {other}: {error}") from error
            ends[errno.errorcode[error.errno]] += 1
        if progress is not None:
            os.write(progress, b".")
    return ends


def lower() -> dict[Name, Node]:
    """What the processes find."""
    files: dict[Name, Node] = {}
    for directory in ("lower", "lower/sub", "a", "c"):
        files[directory] = Dir(mode=0o755)
        for name in NAMES[:3]:
            files[f"{directory}/{name}"] = File(f"{directory} {name}".encode() * 50)
    files["lower/link"] = Link("lower/one")
    files["c/two"] = Symlink("one")
    return files


def open_up(top: Path) -> None:
    """Let everybody read what is to be compared; a mode is not what this test is about."""
    for directory, _, names in os.walk(top):
        os.chmod(directory, 0o755)
        for name in names:
            path = Path(directory, name)
            if not path.is_symlink():
                path.chmod(0o644)
