"""What has the name of WORK when a kernel mount ends is touched only if it is the WORK of that mount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuseunion.engines.kernel import work_mark
from tests.support.arena import Arena
from tests.trust.hostile import Land, land

pytestmark = [pytest.mark.root, pytest.mark.actors("root")]


def _mounted(there: Land, *arguments: str | Path) -> Path:
    there.upper.mkdir()
    assert there.run(*there.mount("--engine", "kernel", *arguments)).returncode == 0
    return there.arena.directory("merged")


def _umount(there: Land, merged: Path) -> None:
    done = there.run("umount", merged)
    assert done.returncode == 0, done.stderr
    assert not os.path.ismount(merged)


@pytest.mark.parametrize("volatile", [False, True])
def test_a_link(arena: Arena, volatile: bool) -> None:
    there = land(arena)
    merged = _mounted(there, *(["--volatile"] if volatile else []))
    with there.hostile():
        there.work.rename(there.home / "away")
        there.work.symlink_to(there.treasure)
    _umount(there, merged)
    there.check()


@pytest.mark.parametrize("marked", [False, True])
def test_another_directory_of_root(arena: Arena, marked: bool) -> None:
    """Who owns the directory above can rename what root made there; a copy of the mark tells of another."""
    there = land(arena)
    other = there.home / "other"
    (other / "work").mkdir(parents=True)
    (other / "work/dear").write_text("dear")
    merged = _mounted(there)
    if marked:
        for name in os.listxattr(there.work):
            os.setxattr(other, name, os.getxattr(there.work, name))
    with there.hostile():
        there.work.rename(there.home / "away")
        other.rename(there.work)
    _umount(there, merged)
    assert (there.work / "work/dear").read_text() == "dear"


def test_a_directory_of_the_hostile_user(arena: Arena) -> None:
    there = land(arena)
    merged = _mounted(there)
    with there.hostile():
        there.work.rename(there.home / "away")
        there.work.mkdir()
        (there.work / "work").symlink_to(there.treasure)
    _umount(there, merged)
    there.check()


@pytest.mark.parametrize("volatile", [False, True])
def test_its_own_goes(arena: Arena, volatile: bool) -> None:
    there = land(arena)
    merged = _mounted(there, *(["--volatile"] if volatile else []))
    (merged / "file").write_text("changed")
    _umount(there, merged)
    assert not there.work.exists()
    assert (there.upper / "file").read_text() == "changed"


def test_a_mark_is_taken_once(arena: Arena) -> None:
    fds = [os.open(arena.directory(name), os.O_RDONLY) for name in ("one", "two")]
    try:
        work_mark.put(*fds)
        assert not work_mark.take(fds[0], fds[0])
        assert work_mark.take(*fds)
        assert not work_mark.take(*fds)
        assert os.listxattr(fds[0]) == []
    finally:
        for fd in fds:
            os.close(fd)
