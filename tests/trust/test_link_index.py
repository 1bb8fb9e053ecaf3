"""The hard-link index is the word of who mounts, whoever owns WORK; what else is in it is in nobody's way."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fuseunion.core.disk.work import WorkDirectory
from fuseunion.core.marks.link_index import LinkIndex
from tests.support.arena import Arena
from tests.support.layers import File, Link
from tests.trust.hostile import Land, land

pytestmark = [pytest.mark.root, pytest.mark.actors("root")]

OWNER = 165_536
"""The root of a container, as rootful container engines give UPPER and WORK to it."""


def _given_away(there: Land) -> Path:
    work = there.home / "work"
    for path in (there.upper, work):
        path.mkdir()
        os.chown(path, OWNER, OWNER)
    return work


def _arguments(there: Land, work: Path) -> tuple[str | Path, ...]:
    options = f"lowerdir={there.lower},upperdir={there.upper},workdir={work}"
    return ("-o", options, there.arena.directory("merged"))


FORGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "of the owner of WORK": (lambda links: (links.mkdir(0o700), os.chown(links, OWNER, OWNER)), "belongs to another"),
    "open to all": (lambda links: (links.mkdir(), links.chmod(0o777)), "may be written by other users"),
    "a link": (lambda links: links.symlink_to("/tmp"), "is no directory"),
    "a file": (lambda links: links.touch(), "is no directory"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_one_that_is_not_ours_is_refused(arena: Arena, kind: str) -> None:
    there = land(arena)
    work = _given_away(there)
    make, because = FORGED[kind]
    make(work / "links")
    there.refused(*_arguments(there, work), because=f"'links' in the work directory '{work}' {because}")


@pytest.mark.parametrize("kind", FORGED)
def test_neither_where_it_is_loaded(arena: Arena, kind: str) -> None:
    """Who owns WORK can put one there after the first look."""
    there = land(arena)
    work = _given_away(there)
    directory = WorkDirectory(os.open(work, os.O_RDONLY | os.O_DIRECTORY), str(work))
    try:
        FORGED[kind][0](work / "links")
        with pytest.raises(OSError):
            LinkIndex(directory)
    finally:
        (work / "links").rmdir() if (work / "links").is_dir() and kind != "a link" else (work / "links").unlink()
        directory.close()


def test_one_of_ours_is_used_where_another_owns_work(arena: Arena) -> None:
    there = land(arena)
    work, merged = _given_away(there), arena.directory("merged")
    lower = arena.lower({"a": File(b"linked"), "b": Link("a")}, "linked")
    options = f"lowerdir={lower},upperdir={there.upper},workdir={work}"
    for _ in range(2):
        assert there.run("-o", options, merged).returncode == 0
        with open(merged / "a", "a") as file:
            file.write("!")
        assert (merged / "a").stat().st_ino == (merged / "b").stat().st_ino
        assert there.run("umount", merged).returncode == 0
    assert (work / "links").stat().st_uid == 0
    assert stat.S_IMODE((work / "links").stat().st_mode) == 0o700


def test_a_link_index_is_not_led_elsewhere(arena: Arena) -> None:
    there = land(arena)
    work = _given_away(there)
    lower = arena.lower({"a": File(b"linked"), "b": Link("a"), "c": File(b"linked 2"), "d": Link("c")}, "linked")
    merged = arena.directory("merged")
    options = f"lowerdir={lower},upperdir={there.upper},workdir={work}"
    assert there.run("-o", options, merged).returncode == 0
    (merged / "a").write_text("1")
    (work / "links").rename(work / "away")
    (work / "links").symlink_to(there.treasure)
    (merged / "c").write_text("2")
    assert (merged / "d").read_text() == "2"
    (work / "links").unlink()
    (work / "away").rename(work / "links")
    assert there.run("umount", merged).returncode == 0
    there.check()


ODD: dict[str, Callable[[Path], object]] = {
    "a file like a key": lambda links: (links / "5-6-7").touch(),
    "a link like a key": lambda links: (links / "5-6-7").symlink_to("/"),
    "a name of no key": lambda links: (links / "other").mkdir(),
    "the copy is a directory": lambda links: (links / "5-6-7/inode").mkdir(parents=True),
    "the count is a directory": lambda links: (links / "5-6-7/l-2").mkdir(parents=True),
    "a mark is a directory": lambda links: (links / "5-6-7/c-0123").mkdir(parents=True),
    "dirty is a directory": lambda links: (links / "dirty").mkdir(),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_nothing_of_ours_leaves_there(arena: Arena, kind: str) -> None:
    lower = arena.lower({"file": File(b"lower")})
    work = arena.directory("work")
    (work / "links").mkdir(0o700)
    ODD[kind](work / "links")
    merged = arena.directory("merged")
    done = arena.place.fuseunion("--work", work, lower, arena.upper, merged)
    assert done.returncode == 0 and "ignoring b'" in done.stderr, done.stderr
    (merged / "file").write_text("changed")
    assert arena.place.fuseunion("umount", merged).returncode == 0
    assert (arena.upper / "file").read_text() == "changed"
