"""The power goes while programs write and sync: the next boot finds what was synced, and nothing torn.

UPPER and the work directory lie on a disk (tests/support/power_cut.py) that is cut again and again under load. Each
process has files of its own and writes down what it is about to do, and what fsync(2) confirmed. So it is known which
contents a file may have in a cut: the one that was confirmed last before the cut, and any that was begun since.

`FUSEUNION_SEED=N make test ARGS="-k power_cuts"` repeats the load of a run; where the cuts fall is left to chance.
FUSEUNION_STRESS=1 makes many of them, on XFS too, and prints what was found.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import STRESS_VARIABLE
from tests.support import tree
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Link, Name, Node
from tests.support.mounts import FuseunionMount
from tests.support.power_cut import FragileDisk, fragile_disk
from tests.support.waiting import wait_until

LONG = bool(os.environ.get(STRESS_VARIABLE))
FILESYSTEMS, MOUNTS, CUTS, PROCESSES = (("ext4", "xfs"), 8, 4, 6) if LONG else (("ext4",), 1, 2, 3)
SEED = int(os.environ.get("FUSEUNION_SEED", random.SystemRandom().randrange(1 << 30)))

SLOTS, IN_LOWER = 40, 32
LINKED = (IN_LOWER - 2, IN_LOWER - 1)
"""Two names of one lower file."""
BLOCK, BLOCKS = 4096, 3
ABSENT = -1


def _content(process: int, slot: int, version: int) -> bytes:
    """All that a version of a file holds; each block is unlike all others."""
    if slot == LINKED[1]:
        slot = LINKED[0]
    blocks = (hashlib.sha256(f"{process} {slot} {version} {block}".encode()).digest() for block in range(BLOCKS))
    return b"".join(digest * (BLOCK // len(digest)) for digest in blocks)


def _name(process: int, slot: int) -> str:
    # Half of them in a directory of a lower, which has to be copied up first.
    return f"p{process}/{'sub/' if slot % 2 else ''}s{slot}"


def _lower() -> dict[Name, Node]:
    found: dict[Name, Node] = {}
    for process in range(PROCESSES):
        found[f"p{process}/sub"] = Dir()
        for slot in range(IN_LOWER):
            name = _name(process, slot)
            if slot == LINKED[1]:
                found[name] = Link(_name(process, LINKED[0]))
            else:
                found[name] = File(_content(process, slot, 0))
    return found


class _Writer:
    """One process: does something to one of its files again and again, until it is killed.

    It writes lines: `w SLOT VERSION`, the file is about to be this version at once (or gone, ABSENT); `m SLOT VERSION`,
    block by block; `d SLOT`, what was said of the file last is on the disk.
    """

    def __init__(self, top: Path, log: Path, process: int, number: int) -> None:
        self.top, self.process = top, process
        self.rng = random.Random(f"{SEED} {process} {number}")
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.versions = itertools.count(1)
        self.present = set(range(IN_LOWER))

    def _note(self, *words: object) -> None:
        os.write(self.log, (" ".join(map(str, words)) + "\n").encode())

    def run(self) -> None:
        """Never returns."""
        while True:
            slot = self.rng.randrange(SLOTS)
            path = self.top / _name(self.process, slot)
            pick = self.rng.random()
            if slot not in self.present:
                self._replace(slot, path)
            elif slot in LINKED or pick < 0.3:
                self._overwrite(slot, path)
            elif pick < 0.6:
                self._replace(slot, path)
            elif pick < 0.8:
                self._remove(slot, path)
            else:
                path.chmod(self.rng.choice((0o600, 0o644)))  # a lower file is copied up

    def _replace(self, slot: int, path: Path) -> None:
        version = next(self.versions)
        new = path.with_name("new")
        with new.open("wb") as file:
            file.write(_content(self.process, slot, version))
            file.flush()
            os.fsync(file.fileno())
        self._note("w", slot, version)
        new.rename(path)
        self.present.add(slot)
        self._sync(slot, path.parent)

    def _overwrite(self, slot: int, path: Path) -> None:
        version = next(self.versions)
        with path.open("r+b", buffering=0) as file:
            for linked in LINKED if slot in LINKED else (slot,):
                self._note("m", linked, version)
            assert file.write(_content(self.process, slot, version)) == BLOCK * BLOCKS
            if self.rng.random() < 0.7:
                os.fsync(file.fileno())
                # The data; of the names the one that it was opened by.
                self._note("d", slot)

    def _remove(self, slot: int, path: Path) -> None:
        self._note("w", slot, ABSENT)
        path.unlink()
        self.present.discard(slot)
        self._sync(slot, path.parent)

    def _sync(self, slot: int, directory: Path) -> None:
        if self.rng.random() < 0.7:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            self._note("d", slot)


class _Possible:
    """What a file may hold in a cut."""

    def __init__(self, first: int) -> None:
        self.versions = [first]
        self.mixed = False
        self.confirmed = 0

    def follow(self, kind: str, version: int | None, *, before: bool) -> None:
        """One line that the writer wrote.

        :param before: it was there before the cut was begun; else the confirmation may be of something after it
        """
        if version is not None:
            self.versions.append(version)
            self.mixed = self.mixed or kind == "m"
        elif before:
            self.versions, self.mixed = self.versions[-1:], False
            self.confirmed += 1

    def allows(self, process: int, slot: int, found: bytes | None) -> bool:
        """Whether a file may hold this; None: there is none."""
        if found is None:
            return ABSENT in self.versions
        whole = [_content(process, slot, version) for version in self.versions if version != ABSENT]
        if found in whole:
            return True
        blocks = {content[at : at + BLOCK] for content in whole for at in range(0, len(content), BLOCK)}
        parts = [found[at : at + BLOCK] for at in range(0, len(found), BLOCK)]
        return self.mixed and len(found) == BLOCK * BLOCKS and all(part in blocks for part in parts)


def _possible(log: bytes, length: int) -> dict[int, _Possible]:
    """What the log of a process says of each of its files, of which `length` bytes were there before the cut."""
    found = {slot: _Possible(0 if slot < IN_LOWER else ABSENT) for slot in range(SLOTS)}
    position = 0
    for line in log.splitlines(keepends=True):
        position += len(line)
        if not line.endswith(b"\n"):
            break
        kind, slot, *version = line.decode().split()
        found[int(slot)].follow(kind, int(version[0]) if version else None, before=position <= length)
    return found


@pytest.mark.actors("root")
@pytest.mark.limit(2400.0 if LONG else 120.0)
@pytest.mark.parametrize("fstype", FILESYSTEMS)
def test_power_cuts(arena: Arena, fstype: str) -> None:
    lower = arena.lower(_lower())
    total: collections.Counter[str] = collections.Counter()
    with fragile_disk(fstype, arena.directory("machine")) as disk:
        for number in range(MOUNTS):
            _cut_again_and_again(arena, lower, disk, number, total)
    print(f"seed {SEED}: {fstype}: {MOUNTS * CUTS} power cuts, files found: {dict(total)}")
    assert total["confirmed"] and total["written"] and total["lower"], "hardly anything happened"


def _cut_again_and_again(
    arena: Arena, lower: Path, disk: FragileDisk, number: int, total: collections.Counter[str]
) -> None:
    """A new upper, work on it, and some cuts."""
    rng = random.Random(f"{SEED} {number}")
    directory = arena.directory(f"load{number}")
    logs = [directory / f"writer{process}" for process in range(PROCESSES)]
    for log in logs:
        log.touch()
    names = f"upper{number}", f"work{number}"
    upper, work = (disk.root / name for name in names)
    with arena.mount(lower, upper=upper, work=work) as mount:
        writers = [_start(mount.merged, log, process, number) for process, log in enumerate(logs)]
        try:
            for cut in range(CUTS):
                steps = sum(log.stat().st_size for log in logs) + rng.randrange(3_000)
                wait_until(lambda: sum(log.stat().st_size for log in logs) > steps, "the writers", 60)  # noqa: B023
                before = [log.stat().st_size for log in logs]
                disk.cut()
                after = [log.read_bytes() for log in logs]
                with disk.next_boot(arena.directory("boot")) as found:
                    when = f"seed {SEED}, {disk.fstype}, mount {number}, cut {cut}"
                    if not (found / names[0]).exists():
                        total["too early"] += 1
                        assert _as_in_the_lower(before, after), f"{when}: what was synced is gone with the upper"
                        continue
                    _check(arena, lower, (found / names[0], found / names[1]), before, after, when, total)
        finally:
            for pid in writers:
                os.kill(pid, signal.SIGKILL)
            ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in writers]
        assert ends == [-signal.SIGKILL] * PROCESSES, f"seed {SEED}: a writer met an error: {ends}"


def _as_in_the_lower(before: Sequence[int], after: Sequence[bytes]) -> bool:
    """Whether every file may hold what the lower has of it."""
    return all(
        possible.allows(process, slot, _content(process, slot, 0) if slot < IN_LOWER else None)
        for process in range(PROCESSES)
        for slot, possible in _possible(after[process], before[process]).items()
    )


def _start(top: Path, log: Path, process: int, number: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            _Writer(top, log, process, number).run()
        finally:
            os._exit(1)
    return pid


def _check(
    arena: Arena,
    lower: Path,
    found: tuple[Path, Path],
    before: Sequence[int],
    after: Sequence[bytes],
    when: str,
    total: collections.Counter[str],
) -> None:
    """The next mount works, shows of each file what it may hold, cleans up, and shows what overlayfs shows.

    :param found: UPPER and the work directory
    """
    merged = arena.directory("next")
    upper, work = found
    with FuseunionMount(arena.place, [lower], upper, merged, work=work) as mount:
        for process in range(PROCESSES):
            for slot, possible in _possible(after[process], before[process]).items():
                path = mount / _name(process, slot)
                content = path.read_bytes() if path.exists() else None
                assert possible.allows(process, slot, content), (
                    f"{when}: {_name(process, slot)} is {_described(process, slot, content)}, "
                    f"not one of {possible.versions}"
                )
                total["confirmed"] += bool(possible.confirmed)
                total[
                    "gone" if content is None else "lower" if content == _content(process, slot, 0) else "written"
                ] += 1
            assert _same_content(mount, process), f"{when}: two names of one file differ"
        seen = tree.snapshot(merged)
    with arena.kernel(lower, upper=upper) as kernel:
        fields = tuple(field for field in tree.SEEN if field != "links")
        differences = tree.differences(seen, tree.snapshot(kernel.merged), fields)
        # Overlayfs without its index: the other name of a file that was copied up shows the lower file.
        linked = tuple(repr(os.fsencode(_name(process, slot))) for process in range(PROCESSES) for slot in LINKED)
        differences = [line for line in differences if not line.startswith(linked)]
    assert not differences, f"{when}: overlayfs shows otherwise:\n  " + "\n  ".join(differences)


def _same_content(mount: FuseunionMount, process: int) -> bool:
    one, other = (mount / _name(process, slot) for slot in LINKED)
    return one.read_bytes() == other.read_bytes() and one.stat().st_ino == other.stat().st_ino


def _described(process: int, slot: int, content: bytes | None) -> str:
    """For a report: the version of each block, `?` for what was never written."""
    if content is None:
        return "gone"
    known = {
        _content(process, slot, version)[at : at + BLOCK]: version
        for version in range(5_000)
        for at in range(0, BLOCK * BLOCKS, BLOCK)
    }
    parts = [content[at : at + BLOCK] for at in range(0, len(content), BLOCK)]
    return f"{len(content)} bytes, {[known.get(part, '?') for part in parts]}"
