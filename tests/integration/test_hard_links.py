"""Hard links of a lower file stay one file, whichever name is changed, also after a remount (docs/differences.md)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.layers import Dir, File, Link, Name, Node
from tests.support.mounts import FuseunionMount
from tests.support.twin import Twin

GROUP: dict[Name, Node] = {
    "a": File(b"one file", mode=0o644, xattrs={"user.x": b"1"}),
    "d": Dir(),
    "d/b": Link("a"),
    "e/f/c": Link("a"),
    "alone": File(b"alone"),
}


def _append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def _status(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_nlink, status.st_size, status.st_mode


def _remount(mount: FuseunionMount) -> None:
    mount.stop()
    mount.start()


def test_a_change_shows_under_every_name(arena: Arena) -> None:
    """One inode, one link count, one content, whichever name changes, before and after remounts."""
    lower = arena.lower(GROUP)
    with arena.mount(lower) as mount:
        names = [mount / "a", mount / "d/b", mount / "e/f/c"]
        first = _status(names[0])
        assert first[1] == 3
        for step, path in enumerate(names):
            _append(path, b"+%d" % step)
            path.chmod(0o600 + step)
            assert len({_status(name) for name in names}) == 1
            assert {name.read_bytes() for name in names} == {names[0].read_bytes()}
            _remount(mount)
            assert {_status(name) for name in names} == {(first[0], 3, first[2] + 2 * (step + 1), 0o100600 + step)}
        assert names[0].read_bytes() == b"one file+0+1+2"


def test_names_not_yet_seen_follow(arena: Arena) -> None:
    """The other names of a changed file are found changed even if nobody looked at them before the remount."""
    lower = arena.lower(GROUP)
    with arena.mount(lower) as mount:
        _append(mount / "a", b"!")
        _remount(mount)
        assert (mount / "e/f/c").read_bytes() == b"one file!"
        _append(mount / "e/f/c", b"?")
        _remount(mount)
        assert (mount / "d/b").read_bytes() == b"one file!?"
        assert len({_status(mount / name) for name in ("a", "d/b", "e/f/c")}) == 1


def test_group_like_a_plain_directory(arena: Arena) -> None:
    """Links made and removed, renames and deletions in a group answer and leave what a plain directory does."""
    lower = arena.lower(GROUP)
    with arena.mount(lower) as mount:
        twin = Twin(arena, mount)
        twin.both(lambda root: (root / "d/b").unlink())
        twin.remount()
        twin.both(lambda root: os.link(root / "a", root / "new"))
        twin.both(lambda root: _append(root / "e/f/c", b"1"))
        twin.remount()
        twin.both(lambda root: (root / "a").rename(root / "d/moved"))
        twin.both(lambda root: os.link(root / "e/f/c", root / "a"))
        twin.both(lambda root: (root / "new").rename(root / "a"))  # two names of one file: nothing happens
        twin.both(lambda root: (root / "alone").rename(root / "new"))  # replaces one name of the group
        twin.remount()
        twin.both(lambda root: _append(root / "d/moved", b"2"))
        for name in ("a", "d/moved", "e/f/c"):
            twin.both(lambda root, name=name: (root / name).unlink())  # type: ignore[misc]
        twin.remount()


def test_deleted_names_of_an_unchanged_group(arena: Arena) -> None:
    """Deleting a name of a lower group lowers the count that the other names show, and needs no copy."""
    lower = arena.lower(GROUP)
    with arena.mount(lower) as mount:
        twin = Twin(arena, mount)
        with open(mount / "a", "rb") as held:
            twin.both(lambda root: (root / "a").unlink())
            assert os.fstat(held.fileno()).st_nlink == 2
            twin.both(lambda root: (root / "d/b").unlink())
            twin.both(lambda root: (root / "e/f/c").unlink())
            assert os.fstat(held.fileno()).st_nlink == 0
            assert held.read() == b"one file"
        twin.remount()


def test_descriptor_of_one_name_sees_a_change_through_another(arena: Arena) -> None:
    """All names and descriptors of a group are one open file object's inode."""
    lower = arena.lower(GROUP)
    with arena.mount(lower) as mount, open(mount / "d/b", "rb") as reader:
        assert reader.read(3) == b"one"
        _append(mount / "a", b" changed")
        assert reader.read() == b" file changed"


def test_links_of_new_and_copied_files(arena: Arena) -> None:
    """Link counts of files that upper made or copied are right under each name and through a remount."""
    lower = arena.lower({"f": File(b"f"), "d/x": File()})
    with arena.mount(lower) as mount:
        twin = Twin(arena, mount)
        twin.both(lambda root: os.link(root / "f", root / "d/f2"))
        twin.both(lambda root: _append(root / "d/f2", b"!"))
        twin.both(lambda root: (root / "new").touch())
        twin.both(lambda root: os.link(root / "new", root / "d/new2"))
        twin.both(lambda root: (root / "new").unlink())
        twin.remount()
        twin.both(lambda root: os.link(root / "f", root / "d/f2"))
        twin.both(lambda root: os.link(root / "d", root / "dir-link"))


@pytest.mark.actors("root")
def test_others_see_the_known_names_changed(arena: Arena) -> None:
    """Every name that was known when the group was copied is in upper, for the kernel to see."""
    lower = arena.lower(GROUP)
    with arena.mount(lower) as mount:
        for name in ("a", "d/b"):
            (mount / name).stat()
        _append(mount / "a", b"!")
    with arena.kernel(lower, upper=arena.upper) as merged:
        assert (merged / "a").read_bytes() == b"one file!"
        assert (merged / "d/b").read_bytes() == b"one file!"
        assert (merged / "a").stat().st_ino == (merged / "d/b").stat().st_ino
