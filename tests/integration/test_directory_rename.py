"""Renaming directories that lowers hold: EXDEV in overlayfs, done here (docs/differences.md)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support import libc, tree
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Name, Node, Symlink
from tests.support.twin import Twin

LOWER: dict[Name, Node] = {
    "d": Dir(mode=0o2751, xattrs={"user.d": b"1"}),
    "d/f": File(b"file", mode=0o640, xattrs={"user.f": b"2"}),
    "d/sub/deep/g": File(b"g"),
    "d/l": Symlink("f"),
    "other/x": File(b"x"),
    "empty": Dir(),
}
BELOW: dict[Name, Node] = {"d/below": File(b"below"), "d/f": File(b"hidden"), "d/sub/low": File(), "other/y": File()}


def _exchange(root: Path, one: str, two: str) -> None:
    libc.rename(os.fsencode(root / one), os.fsencode(root / two), libc.RenameFlag.EXCHANGE)


def _move_about(twin: Twin) -> None:
    """Renames of lower, merged and new directories, and some that are refused."""
    twin.both(lambda root: (root / "d").rename(root / "moved"))
    twin.remount()
    twin.both(lambda root: (root / "d").mkdir())
    twin.both(lambda root: (root / "moved/sub").rename(root / "d/sub"))
    twin.both(lambda root: (root / "moved").rename(root / "other"))  # not empty
    twin.both(lambda root: (root / "moved").rename(root / "empty"))
    twin.remount()
    twin.both(lambda root: (root / "empty/below").write_bytes(b"changed"))
    twin.both(lambda root: (root / "empty").rename(root / "d/sub/deep/inner"))
    twin.both(lambda root: (root / "d").rename(root / "d/sub/into-itself"))


def test_rename_like_a_plain_directory(arena: Arena) -> None:
    """Lower and merged directories move with all that is in them, and leave nothing behind."""
    top, bottom = arena.lower(LOWER), arena.lower(BELOW)
    with arena.mount(top, bottom) as mount:
        twin = Twin(arena, mount)
        _move_about(twin)
        twin.remount()


def test_exchange_of_directories(arena: Arena) -> None:
    """RENAME_EXCHANGE works between directories of any layer, and between a directory and a file."""
    top, bottom = arena.lower(LOWER), arena.lower(BELOW)
    with arena.mount(top, bottom) as mount:
        twin = Twin(arena, mount)
        twin.both(lambda root: _exchange(root, "d", "other"))
        twin.remount()
        twin.both(lambda root: _exchange(root, "other/f", "d"))
        twin.both(lambda root: _exchange(root, "other", "other/sub"))
        twin.remount()
        twin.both(lambda root: shutil.rmtree(root / "other"))
        twin.both(lambda root: (root / "other").mkdir())
        twin.remount()


def test_open_files_and_directories_move_along(arena: Arena) -> None:
    """Descriptors into a renamed directory keep working on what they were opened on."""
    lower = arena.lower(LOWER)
    with arena.mount(lower) as mount:
        directory = os.open(mount / "d/sub", os.O_RDONLY | os.O_DIRECTORY)
        with open(mount / "d/f", "r+b", buffering=0) as file:
            (mount / "d").rename(mount / "moved")
            assert file.read() == b"file"
            file.write(b"!")
            assert (mount / "moved/f").read_bytes() == b"file!"
            assert os.listdir(directory) == ["deep"]
            os.close(os.open("new", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=directory))
        os.close(directory)
        assert sorted(os.listdir(mount / "moved/sub")) == ["deep", "new"]
        assert not (mount / "d").exists()


def test_rename_keeps_attributes_and_inode_numbers(arena: Arena) -> None:
    """A renamed directory is the same directory: number, mode, owner, times, xattrs; and so is all below it."""
    lower = arena.lower(LOWER)
    with arena.mount(lower) as mount:
        before = tree.snapshot(mount / "d")
        (mount / "d").rename(mount / "other/moved")
        after = tree.snapshot(mount / "other/moved")
        assert not tree.differences(before, after, (*tree.SEEN, "ino"))
        mount.stop()
        mount.start()
        assert not tree.differences(before, tree.snapshot(mount / "other/moved"), (*tree.SEEN, "ino"))


@pytest.mark.actors("root")
def test_the_kernel_sees_the_renamed_directory(arena: Arena) -> None:
    """Without redirect_dir the upper is one that every overlayfs reads."""
    top, bottom = arena.lower(LOWER), arena.lower(BELOW)
    with arena.mount(top, bottom) as mount:
        (mount / "d").rename(mount / "moved")
        (mount / "d").mkdir()
        expected = tree.snapshot(mount.merged)
    with arena.kernel(top, bottom, upper=arena.upper) as merged:
        tree.assert_same(expected, tree.snapshot(merged.merged), "the kernel's view of the renamed directory")


def test_redirects_like_a_plain_directory(arena: Arena) -> None:
    """With redirect_dir=on: the same, and nothing that was not written is in the upper."""
    top, bottom = arena.lower(LOWER), arena.lower(BELOW)
    with arena.mount(top, bottom, options=("redirect_dir=on",)) as mount:
        twin = Twin(arena, mount)
        _move_about(twin)
        twin.both(lambda root: _exchange(root, "d/sub/deep", "other"))
        twin.remount()
    written = [path for path in arena.upper.rglob("*") if path.is_file() and path.stat().st_size]
    assert [path.name for path in written] == ["below"]


def test_rename_of_a_large_directory(arena: Arena) -> None:
    """A directory of a thousand files moves as one: both names never show together, and nothing is lost."""
    lower = arena.lower({f"d/{number // 100}/{number}": File(b"%d" % number) for number in range(1000)})
    with arena.mount(lower) as mount:
        expected = {path: entry.content for path, entry in tree.snapshot(mount / "d").items()}
        (mount / "d").rename(mount / "moved")
        assert os.listdir(mount.merged) == ["moved"]
        assert {path: entry.content for path, entry in tree.snapshot(mount / "moved").items()} == expected
