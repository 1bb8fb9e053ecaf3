"""A soak: a daemon that serves for a long time needs no more memory and no more descriptors than at the start.

Rounds of work create, change, read, rename, link and delete new and lower files, then the kernel is told to forget
what it cached. Memory is measured between rounds, once the first rounds have filled the allocator's arenas and every
cache of the daemon; after that it may not grow.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stress import SECONDS
from tests.support import processes
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Name, Node
from tests.support.mounts import FuseunionMount

FILES = 400
GROWTH_KIB = 4096
DESCRIPTORS = 2 * 256 + 100
"""Two layers, each with a bounded cache of directories (fuseunion/core/disk/realdir.py), and the daemon's own."""


def _work(root: Path, number: int) -> None:
    """One round; leaves the tree with as many objects as it had."""
    place = root / f"round{number % 7}"
    place.mkdir()
    for file in range(FILES):
        path = place / f"{file}"
        path.write_bytes(b"x" * (file * 37 % 9000))
        if file % 3 == 0:
            path.rename(place / f"renamed{file}")
        elif file % 3 == 1:
            os.link(path, place / f"link{file}")
        with open(root / "lower" / f"{file % 100}", "ab") as lower:
            lower.write(b".")
        os.setxattr(root / "lower" / f"{file % 100}", "user.round", b"%d" % number)
    for file in range(100):
        path = root / "deleted" / f"{file}"
        path.unlink()
        path.write_bytes(b"again")
    (root / "lower").rename(root / "moved")
    (root / "moved").rename(root / "lower")
    assert len(os.listdir(place)) == FILES + FILES // 3
    shutil.rmtree(place)
    for file in range(100):
        os.truncate(root / "lower" / f"{file}", 1)


def _forget() -> None:
    """Make the kernel drop unused entries and inodes, so that it sends FORGET (proc(5), drop_caches)."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def _rounds(mount: FuseunionMount, seconds: float) -> Iterator[tuple[int, int, int]]:
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end or number < 12:
        _work(mount.merged, number)
        _forget()
        number += 1
        yield number, processes.resident_kib(mount.daemon), len(mount.layer_descriptors())


@pytest.mark.stress
@pytest.mark.actors("root")
@pytest.mark.limit(SECONDS + 300)
def test_soak(arena: Arena) -> None:
    """Memory and descriptor counts stay flat over minutes of creating, changing and deleting."""
    description: dict[Name, Node] = {"lower": Dir()}
    for file in range(100):
        description[f"lower/{file}"] = File(b"x")
        description[f"deleted/{file}"] = File(b"y")
    lower = arena.lower(description)
    with arena.mount(lower) as mount:
        measured = list(_rounds(mount, SECONDS))
        settled = measured[len(measured) // 3 :]
        half = len(settled) // 2
        early, late = settled[:half], settled[half:]
        memory = max(kib for _, kib, _ in late) - max(kib for _, kib, _ in early)
        descriptors = max(count for *_, count in late) - max(count for *_, count in early)
        assert memory < GROWTH_KIB, f"memory grew by {memory} KiB: {measured}"
        assert descriptors <= 0, f"open files grew by {descriptors}: {measured}"
        total = len(processes.descriptors(mount.daemon))
        assert total <= DESCRIPTORS, f"the bounded caches of directories hold {total} descriptors"
