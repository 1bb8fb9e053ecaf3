"""One directory with a great many entries, half of them of the lower, half of the upper: listed, asked for all
attributes, changed while it is listed; beside a plain directory, which says what is right."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.usage import PER_INODE, forget, usage

SIZES = [
    pytest.param(20_000, id="slice", marks=pytest.mark.limit(120.0)),
    pytest.param(200_000, id="long", marks=[pytest.mark.stress, pytest.mark.limit(1200.0)]),
]
REMOVED = [
    pytest.param(2_000, id="slice"),
    pytest.param(200_000, id="long", marks=[pytest.mark.stress, pytest.mark.limit(1200.0)]),
]
LISTERS = 8


def _fill(top: Path, names: list[str]) -> None:
    fd = os.open(top, os.O_RDONLY)
    try:
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    finally:
        os.close(fd)


def _names(first: int, last: int) -> list[str]:
    return [f"entry{number}" for number in range(first, last)]


@pytest.mark.actors("root")
@pytest.mark.parametrize("entries", SIZES)
def test_a_large_directory(arena: Arena, entries: int) -> None:
    seed = random.SystemRandom().randrange(10**6)
    lower, upper, plain = (arena.directory(f"{name}/big") for name in ("lower", "upper", "plain"))
    _fill(lower, _names(0, entries // 2))
    _fill(upper, _names(entries // 2, entries))
    _fill(plain, _names(0, entries))
    below = sorted((entry.name, entry.inode()) for entry in os.scandir(lower))
    with arena.mount(lower.parent) as mount:
        big, idle = mount / "big", usage(mount)
        assert _listed(big) == set(_names(0, entries))
        for entry in os.scandir(big):
            status = entry.stat(follow_symlinks=False)
            assert (status.st_ino, status.st_size, status.st_mode) == (entry.inode(), 0, 0o100644)
        after = usage(mount)
        assert (after.resident - idle.resident) * 1024 / entries < PER_INODE, f"idle {idle}, listed {after}"
        _list_side_by_side(big, plain, entries)
        changed = _change_while_listing(big, entries, seed)
        assert changed == _change_while_listing(plain, entries, seed)
        assert _listed(big) == _listed(plain), f"seed {seed}"
        assert usage(mount).handles == 0
        forget(mount)
        left = usage(mount)
        print(
            f"seed {seed}: {entries} entries, {changed} changes while listing: idle {idle}, {after}, in the end {left}"
        )
        assert (left.inodes, left.descriptors) == (idle.inodes, idle.descriptors)
    assert sorted((entry.name, entry.inode()) for entry in os.scandir(lower)) == below, "the lower changed"


@pytest.mark.actors("root")
@pytest.mark.parametrize("entries", REMOVED)
def test_removed_while_it_is_listed(arena: Arena, entries: int) -> None:
    """As rm -r does; it is gone after a remount too, and the daemon keeps nothing of it."""
    lower, upper = (arena.directory(f"{name}/big") for name in ("lower", "upper"))
    _fill(lower, _names(0, entries // 2))
    _fill(upper, _names(entries // 2, entries))
    with arena.mount(lower.parent) as mount:
        big, idle = mount / "big", usage(mount)
        with os.scandir(big) as scan:
            for entry in scan:
                os.unlink(entry.path)
        assert os.listdir(big) == []
        big.rmdir()
        forget(mount)
        left = usage(mount)
        assert (left.inodes, left.descriptors) == (idle.inodes, idle.descriptors)
    with arena.mount(lower.parent) as mount:
        assert os.listdir(mount.merged) == []
    assert len(os.listdir(lower)) == entries // 2, "the lower changed"


def _listed(top: Path) -> set[str]:
    names = os.listdir(top)
    assert len(names) == len(set(names)), "a name was listed twice"
    return set(names)


def _list_side_by_side(big: Path, plain: Path, entries: int) -> None:
    """Several listings, each of an open directory of its own, go forward in turn."""
    with _open_scans(big) as scans:
        seen: list[set[str]] = [set() for _ in scans]
        for _ in range(entries):
            for scan, names in zip(scans, seen, strict=True):
                names.add(next(scan).name)
        assert all(next(scan, None) is None for scan in scans)
        expected = set(os.listdir(plain))
        assert all(names == expected for names in seen)


@contextmanager
def _open_scans(top: Path) -> Iterator[list[Iterator[os.DirEntry[str]]]]:
    scans = [os.scandir(top) for _ in range(LISTERS)]
    try:
        yield list(map(iter, scans))
    finally:
        for scan in scans:
            scan.close()


def _change_while_listing(top: Path, entries: int, seed: int) -> int:
    """Create and delete between two entries. What is not touched is listed, once (readdir(3)).

    :returns: how many changes were made
    """
    rng = random.Random(seed)
    gone: set[str] = set()
    new: set[str] = set()
    listed: list[str] = []
    with os.scandir(top) as scan:
        for count, entry in enumerate(scan):
            listed.append(entry.name)
            # Of the first half: so many are listed whatever is removed, in whatever order.
            if count % 10 == 0 and count < entries // 2:
                name = f"entry{rng.randrange(entries)}"
                if name not in gone:
                    (top / name).unlink()
                    gone.add(name)
                (top / f"new{count}").touch()
                new.add(f"new{count}")
    assert len(listed) == len(set(listed)), f"seed {seed}: a name was listed twice"
    untouched = set(_names(0, entries)) - gone
    assert untouched <= set(listed) <= untouched | gone | new, f"seed {seed}: a name is missing, or was never there"
    return len(gone) + len(new)
