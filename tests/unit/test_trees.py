"""Going through trees and removing them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseunion.core.disk import trees
from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir


@pytest.fixture
def top(tmp_path: Path) -> Iterator[RealDir]:
    (tmp_path / "top" / "one" / "two").mkdir(parents=True)
    (tmp_path / "top" / "one" / "file").write_text("1")
    (tmp_path / "top" / "one" / "two" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "top" / "last").write_text("2")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("3")
    layer = Layer(os.open(tmp_path / "top", os.O_RDONLY | os.O_DIRECTORY), writable=True, label="top")
    yield layer.root
    layer.close()


def paths(top: RealDir) -> set[bytes]:
    return {entry.path for entry in trees.walk(top)}


def test_a_walk_meets_everything_once(top: RealDir) -> None:
    met = [entry.path for entry in trees.walk(top)]
    assert sorted(met) == [b"last", b"one", b"one/file", b"one/two", b"one/two/link"]
    assert met.index(b"one") < met.index(b"one/two") < met.index(b"one/two/link")


def test_a_walk_enters_what_it_is_told_to(top: RealDir) -> None:
    met = {entry.path for entry in trees.walk(top, enters=lambda entry: entry.path != b"one/two")}
    assert met == {b"last", b"one", b"one/file", b"one/two"}


def test_what_is_removed_is_gone_and_links_are_not_followed(top: RealDir, tmp_path: Path) -> None:
    trees.remove(top, b"one")
    assert paths(top) == {b"last"}
    assert (tmp_path / "outside" / "kept").exists()


def test_what_is_not_there_is_removed_already(top: RealDir) -> None:
    trees.remove(top, b"missing")
    assert b"one" in paths(top)


def test_emptying_keeps_the_directory_and_what_is_named(top: RealDir, tmp_path: Path) -> None:
    trees.empty(top, keep=(b"last",))
    assert paths(top) == {b"last"}
    trees.empty(top)
    assert os.listdir(tmp_path / "top") == []


def test_a_tree_deeper_than_a_path_may_be_is_gone_through_and_removed(top: RealDir) -> None:
    depth = 3000
    here = os.open(b".", os.O_RDONLY, dir_fd=top.fd())
    for _ in range(depth):
        os.mkdir(b"d", dir_fd=here)
        below = os.open(b"d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert sum(entry.name == b"d" for entry in trees.walk(top)) == depth
    trees.remove(top, b"d")
    assert b"d" not in paths(top)


def test_directories_that_their_owner_closed_are_removed(top: RealDir, tmp_path: Path) -> None:
    (tmp_path / "top" / "one" / "two").chmod(0)
    (tmp_path / "top" / "one").chmod(0o500)
    trees.remove(top, b"one")
    assert paths(top) == {b"last"}
