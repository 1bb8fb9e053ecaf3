"""WORK belongs to the user who mounts, or is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fuseunion.core.disk.capabilities import Capabilities
from fuseunion.core.disk.work import WorkDirectory
from fuseunion.errors import UserError
from fuseunion.mounting.checks import volatile
from tests.support.arena import Arena
from tests.trust.hostile import UID, land, mode_of

pytestmark = [pytest.mark.root, pytest.mark.actors("root")]

engines = pytest.mark.parametrize("engine", ["fuse", "kernel", "ranch"])


@engines
def test_a_default_that_is_a_link_is_refused(arena: Arena, engine: str) -> None:
    there = land(arena)
    with there.hostile():
        there.work.symlink_to(there.treasure)
    there.refused(*there.mount("--engine", engine), because="is a symbolic link")
    assert not there.upper.exists()


@engines
def test_a_default_of_somebody_else_is_refused(arena: Arena, engine: str) -> None:
    there = land(arena)
    with there.hostile():
        there.work.mkdir(0o777)
        (there.work / "work").symlink_to(there.treasure)
    there.refused(*there.mount("--engine", engine), because=f"belongs to another user ({UID})")
    assert not there.upper.exists()


def test_an_upper_of_somebody_else_does_not_make_its_work_directory_ours(arena: Arena) -> None:
    there = land(arena)
    with there.hostile():
        there.upper.mkdir()
        there.work.mkdir()
    there.refused(*there.mount("--work", there.work), because="belongs to another user")


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_one_that_others_may_write_is_refused(arena: Arena, mode: int) -> None:
    there = land(arena)
    there.work.mkdir()
    os.chown(there.work, 0, UID)
    there.work.chmod(mode)
    there.refused(*there.mount("--work", there.work), because="may be written by other users")
    assert mode_of(there.work) == mode


def test_one_of_ours_is_used(arena: Arena) -> None:
    there = land(arena)
    work = there.home / "own"
    (work / "work").mkdir(parents=True)
    (work / "work").chmod(0)
    with arena.mount(there.lower, upper=there.upper, work=work) as mount:
        (mount / "file").write_text("changed")
    assert (there.upper / "file").read_text() == "changed"


def test_a_container_engine_gives_it_to_the_root_of_the_container(arena: Arena) -> None:
    there = land(arena)
    work = there.home / "work"
    for path in (there.upper, work):
        path.mkdir()
        os.chown(path, 165_536, 165_536)
    options = f"lowerdir={there.lower},upperdir={there.upper},workdir={work}"
    merged = arena.directory("merged")
    assert there.run("-o", options, merged).returncode == 0
    (merged / "file").write_text("changed")
    assert there.run("umount", merged).returncode == 0


def test_a_container_engine_of_root_gives_it_to_nobody_else(arena: Arena) -> None:
    there = land(arena)
    work = there.home / "work"
    for path in (there.upper, work):
        path.mkdir()
    os.chown(work, UID, UID)
    options = f"lowerdir={there.lower},upperdir={there.upper},workdir={work}"
    there.refused("-o", options, arena.directory("merged"), because=f"belongs to another user ({UID})")


@pytest.mark.parametrize("engine", ["fuse", "kernel"])
def test_the_inner_directory_is_no_link(arena: Arena, engine: str) -> None:
    there = land(arena)
    there.upper.mkdir()
    there.work.mkdir()
    (there.work / "work").symlink_to(there.treasure)
    there.refused(*there.mount("--engine", engine), because="is no directory of yours")


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def test_neither_where_it_is_opened(arena: Arena) -> None:
    there = land(arena)
    (there.home / "work").symlink_to(there.treasure)
    with pytest.raises(NotADirectoryError):
        WorkDirectory(_open(there.home), "work")
    there.check()


def test_the_inner_directory_of_a_third_user_is_refused(arena: Arena) -> None:
    there = land(arena)
    (there.home / "work").mkdir(0o755)
    os.chown(there.home / "work", UID + 1, UID + 1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        WorkDirectory(_open(there.home), "work")
    assert mode_of(there.home / "work") == 0o755


LEFT: dict[str, Callable[[Path, Path], None]] = {
    "link": lambda path, treasure: path.symlink_to(treasure),
    "hard link": lambda path, treasure: path.hardlink_to(treasure),
    "fifo": lambda path, treasure: os.mkfifo(path),
    "endless": lambda path, treasure: os.mknod(path, 0o20666, os.makedev(1, 5)),
}
"""What somebody who could write WORK/work a moment ago left there: made by root here, which is the worst case."""

left = pytest.mark.parametrize("kind", LEFT)


@left
@pytest.mark.parametrize("name", ["probe-a", "probe-b"])
def test_probes_are_new_files(arena: Arena, kind: str, name: str) -> None:
    there = land(arena)
    inner = there.home / "inner"
    inner.mkdir()
    file = there.home / "file"
    file.write_text("of root")
    LEFT[kind](inner / name, file)
    fd = _open(inner)
    try:
        assert Capabilities.probe(fd).user_xattrs
    finally:
        os.close(fd)
    assert os.listdir(inner) == []
    assert file.read_text() == "of root"
    assert os.listxattr(file) == []


@left
def test_the_mark_of_a_volatile_mount_is_a_new_file(arena: Arena, kind: str) -> None:
    there = land(arena)
    mark = there.home / "work/incompat/volatile"
    mark.mkdir(parents=True)
    file = there.home / "file"
    file.write_text("of root")
    LEFT[kind](mark / "boot_id", file)
    fd = _open(there.home)
    try:
        with pytest.raises(UserError, match="was last mounted volatile"):
            volatile.refuse_older(fd, "WORK")
        volatile.mark(fd)
        volatile.refuse_older(fd, "WORK")
        assert file.read_text() == "of root"
        volatile.clear(fd)
    finally:
        os.close(fd)
    assert not (there.home / "work").exists()


@pytest.mark.parametrize("name", ["work", "work/incompat", "work/incompat/volatile"])
def test_no_link_on_the_way_to_that_mark_is_followed(arena: Arena, name: str) -> None:
    there = land(arena)
    link = there.home / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(there.treasure)
    fd = _open(there.home)
    try:
        with pytest.raises(OSError):
            volatile.mark(fd)
        volatile.clear(fd)
        volatile.clear_of_kernel(fd)
    finally:
        os.close(fd)
    there.check()
    assert link.is_symlink()
