"""kill -9 of the daemon, of the program that shows the image, or of both, at random moments of writing.

A file whose fsync(2) was answered is there and whole; e2fsck(8) can repair what the program left; the next mount shows
of every other file a version that was written, and of none a piece of the one and a piece of the other.

fuse2fs replaces a file by removing it first (misc/fuse2fs.c, op_rename). Killed between the two it leaves the new one
under its old name alone, and the lower shows in the other place; so that is looked for as well (docs/images.md).
"""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import pytest

from tests.images.conftest import ext, fsck, repair
from tests.support import loops, processes
from tests.support.arena import Arena
from tests.support.layers import File
from tests.support.mounts import FuseunionMount
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.stress, pytest.mark.actors("root", "user"), pytest.mark.limit(900)]

ROUNDS = 40
FILES = 40
SIZE = 50_000
IGNORED = "has ended|not put in order|cannot|not connected|aborted|Input/output"


class _Writer(threading.Thread):
    """Replaces one file after another, the way editors do, until the mount is dead."""

    def __init__(self, merged: Path, number: int) -> None:
        super().__init__()
        self.merged, self.number = merged, number
        self.durable: dict[str, int] = {}
        self.begun: dict[str, int] = {}

    def run(self) -> None:
        count = 0
        try:
            while True:
                name, version = f"f{count % FILES}", self.number * 100_000 + count
                self.begun[name] = version
                self._write(name, version)
                self.durable[name] = version
                count += 1
        except OSError:
            pass  # the mount is dead

    def _write(self, name: str, version: int) -> None:
        new = self.merged / f"{name}.new"
        with open(new, "wb") as file:
            file.write(_content(version))
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, self.merged / name)
        directory = os.open(self.merged, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _content(version: int) -> bytes:
    return b"%08d" % version * (SIZE // 8)


def _kill(mount: FuseunionMount, who: str) -> None:
    for pid in {"daemon": [mount.daemon], "program": mount.programs, "both": [*mount.programs, mount.daemon]}[who]:
        os.kill(pid, signal.SIGKILL)


def _found(mount: FuseunionMount, name: str, versions: set[int], killed: str) -> int:
    """The version of a file, which has to be whole.

    Args:
        killed: who was, before this mount.
    """
    data = (mount / name).read_bytes()
    version = int(data[:8])
    assert data == _content(version), f"{name} is torn"
    if version not in versions:
        # Begun last, and in place but for its name.
        assert killed != "daemon", f"{name}: {version}, not {versions}"
        assert (mount / f"{name}.new").read_bytes() == _content(max(versions)), f"{name}: {version}, not {versions}"
        os.rename(mount / f"{name}.new", mount / name)
        return max(versions)
    return version


WAYS = {"fuse": ("daemon", "program", "both"), "auto": ("daemon",)}
"""For root the kernel shows the image with the second, and there is no program that could be killed."""


@pytest.mark.parametrize("way", WAYS)
def test_nothing_that_was_synced_is_lost(arena: Arena, way: str) -> None:
    lower = arena.lower({f"f{number}": File(_content(0)) for number in range(FILES)})
    image = ext(arena.root / "image", size="64M")
    chance = random.Random(1)
    known = {f"f{number}": {0} for number in range(FILES)}
    killed = "daemon"
    for number in range(1, ROUNDS + 1):
        mount = arena.mount(lower, upper=image, options=[f"images={way}"], tolerated=IGNORED)
        mount.start()
        for name, versions in known.items():
            known[name] = {_found(mount, name, versions, killed)}
        writer = _Writer(mount.merged, number)
        writer.start()
        wanted = chance.randrange(1, FILES)
        wait_until(lambda: len(writer.begun) >= wanted, "some files to be written", 60)  # noqa: B023
        killed = chance.choice(WAYS[way])
        _kill(mount, killed)
        writer.join()
        mount.kill()
        wait_until(lambda: not processes.with_token(arena.place.token), "the program that shows the image to end", 60)
        assert loops.left_of(arena.root) == []
        (fsck if killed == "daemon" else repair)(image)
        for name, version in writer.begun.items():
            durable = writer.durable.get(name)
            known[name] = {version} | ({durable} if durable is not None else known[name])
