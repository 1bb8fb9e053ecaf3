"""A lower with a great many files, walked by find(1) and du(1): what an inode costs, and that it is given back."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
from pathlib import Path

import pytest

from tests.support import processes, tree
from tests.support.arena import Arena
from tests.support.usage import PER_INODE, Usage, forget, usage
from tests.support.waiting import wait_until

EACH = 1000
"""Files in one directory."""

SIZES = [
    pytest.param(20, id="slice", marks=pytest.mark.limit(120.0)),
    pytest.param(1000, id="long", marks=[pytest.mark.stress, pytest.mark.limit(1800.0)]),
]
GROWTH_KIB = 8192
"""So much more than the one before, at the most, takes a walk. The first one breaks the arenas in."""

LEFT = 0.1
LEFT_KIB = 8192
"""What a daemon that has forgotten everything and has nothing to do keeps at the most: this part of what the inodes
took, and this."""


def _fill(top: Path, directories: int) -> None:
    for directory in range(directories):
        path = top / f"{directory // 50}" / f"{directory}"
        path.mkdir(parents=True)
        fd = os.open(path, os.O_RDONLY)
        try:
            for file in range(EACH):
                os.close(os.open(f"file{file}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
        finally:
            os.close(fd)


def _digest(top: Path) -> str:
    """Everything that lstat says of a tree of a size at which a snapshot would take too long."""
    found = hashlib.sha256()
    for path, status in tree.walk(top):
        found.update(path + repr(tuple(status)[:7]).encode() + b"%d %d" % (status.st_mtime_ns, status.st_ctime_ns))
    return found.hexdigest()


def _output(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), f"{command}: {done.stderr}"
    return done.stdout


@pytest.mark.actors("root")
@pytest.mark.parametrize("directories", SIZES)
def test_walked_by_find_and_du(arena: Arena, directories: int) -> None:
    lower = arena.directory("lower")
    _fill(lower, directories)
    before = _digest(lower)
    # The upper's root is a directory on disk more; a name of its own would change the count.
    expected = len(_output("find", lower).splitlines())
    files, space = directories * EACH, _output("du", "--apparent-size", "-s", lower).split()[0]
    with arena.mount(lower) as mount:
        seen: list[tuple[Usage, Usage]] = []
        idle = usage(mount)
        for _ in range(3):
            assert len(_output("find", mount.merged, "-type", "f").splitlines()) == files
            assert _output("du", "--apparent-size", "-s", mount.merged).split()[0] == space
            walked = usage(mount)
            assert walked.inodes == expected, "find and du met each object once, under one number"
            forget(mount, timeout=300)
            most = round(idle.resident + LEFT_KIB + LEFT * (walked.resident - idle.resident))
            wait_until(
                lambda most=most: processes.resident_kib(mount.daemon) < most,
                f"all memory but {most} KiB to be given back: idle {idle}, walked {walked}",
            )
            wait_until(
                lambda: len(processes.descriptors(mount.daemon)) <= idle.descriptors,
                f"what the module looks at by itself to be closed: idle {idle}",
            )
            seen.append((walked, usage(mount)))
        print(f"{expected} objects: idle {idle}; walked and forgotten {seen}")
        _judge(idle, seen, expected)
    assert _digest(lower) == before, "the lower changed"


def _judge(idle: Usage, seen: list[tuple[Usage, Usage]], objects: int) -> None:
    first, *again = seen
    cost = (first[0].resident - idle.resident) * 1024 / objects
    assert cost < PER_INODE, f"an inode costs {cost:.0f} bytes"
    for _, forgotten in seen:
        assert (forgotten.inodes, forgotten.descriptors) == (idle.inodes, idle.descriptors), f"idle {idle}, then {seen}"
    for before, after in itertools.pairwise(again):
        assert after[0].resident - before[0].resident < GROWTH_KIB, f"the next walk takes more: {seen}"
