"""The ownership database is a file of the user who mounts, and nothing else is opened in its place."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuseunion.core.ownership.database_store import DatabaseStore
from fuseunion.core.ownership.facts import DATABASE_FILE
from tests.support.arena import Arena
from tests.trust.hostile import UID, land

pytestmark = [pytest.mark.root, pytest.mark.actors("root")]

NAME = DATABASE_FILE.decode()


def _of_another(path: Path) -> None:
    path.touch(0o600)
    os.chown(path, UID, UID)


def _open_to_all(path: Path) -> None:
    path.touch()
    path.chmod(0o666)


FORGED: dict[str, Callable[[Path, Path], None]] = {
    "link": lambda path, treasure: path.symlink_to(treasure / "file"),
    "link to nothing": lambda path, treasure: path.symlink_to(treasure / "new"),
    "hard link": lambda path, treasure: path.hardlink_to(path.parent / "other"),
    "fifo": lambda path, treasure: os.mkfifo(path),
    "endless": lambda path, treasure: os.mknod(path, 0o20666, os.makedev(1, 5)),
    "somebody else's": lambda path, treasure: _of_another(path),
    "open to all": lambda path, treasure: _open_to_all(path),
    "directory": lambda path, treasure: path.mkdir(),
}


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("kind", FORGED)
def test_what_is_not_ours_is_refused(arena: Arena, kind: str, suffix: str) -> None:
    there = land(arena)
    work = arena.directory("work")
    (work / "other").touch()
    FORGED[kind](work / f"{NAME}{suffix}", there.treasure)
    before = sorted(os.listdir(work))
    fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(PermissionError, match=f"'{NAME}{suffix}' in the work directory"):
            DatabaseStore(fd)
    finally:
        os.close(fd)
    assert sorted(os.listdir(work)) == before
    there.check()


def test_a_work_directory_that_is_exchanged_meanwhile(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite resolves the path itself: after our look another directory has the name."""
    there = land(arena)
    work, other = arena.directory("work"), arena.directory("other")
    (other / NAME).touch()
    fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    connect = sqlite3.connect

    def exchange_first(path: str, **named: Any) -> sqlite3.Connection:
        work.rename(there.home / "away")
        work.symlink_to(other)
        return connect(f"file:{work}/{NAME}?vfs=unix-none&mode=rw", **named)

    monkeypatch.setattr("sqlite3.connect", exchange_first)
    try:
        with pytest.raises(OSError) as failed:
            DatabaseStore(fd)
    finally:
        os.close(fd)
    assert failed.value.errno == errno.ESTALE
    assert (other / NAME).stat().st_size == 0
    assert os.listdir(other) == [NAME]
    assert os.listdir(there.home / "away") == []


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_the_mount_says_so_in_one_line(arena: Arena, suffix: str) -> None:
    there = land(arena)
    there.upper.mkdir()
    there.work.mkdir()
    (there.work / f"{NAME}{suffix}").symlink_to(there.treasure / "file")
    there.refused(
        *there.mount("--engine", "fuse", "--fakeroot"), because=f"'{NAME}{suffix}' in the work directory is a symb"
    )
