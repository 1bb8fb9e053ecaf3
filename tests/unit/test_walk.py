"""The walk through a layer: everything once, however deep, with two descriptors."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseunion.offline.walk import walk


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A tree whose deepest path is far longer than PATH_MAX."""
    root = tmp_path / "deep"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    name = "d" * 200
    for _level in range(60):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_CREAT, dir_fd=fd))
    os.close(fd)
    yield root
    subprocess.run(["rm", "-rf", root], check=True)


def test_a_path_may_be_longer_than_path_max(deep: Path) -> None:
    fd = os.open(deep, os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    try:
        paths = []
        for found in walk(fd):
            paths.append(found.path)
            assert len(os.listdir("/proc/self/fd")) <= before + 2
    finally:
        os.close(fd)
    assert len(paths) == 62
    assert paths[-1].endswith(b"/bottom")
    assert len(paths[-1]) > 3 * 4096 - 300


def test_the_walk_visits_everything_once(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "a" / "b").mkdir(parents=True)
    (upper / "c").mkdir()
    (upper / "a" / "file").touch()
    (upper / "link").symlink_to("a")
    os.link(upper / "a" / "file", upper / "c" / "hard")
    os.mkfifo(upper / "c" / "fifo")
    fd = os.open(upper, os.O_RDONLY)
    try:
        seen = {os.fsdecode(found.path): found.st.st_ino for found in walk(fd)}
    finally:
        os.close(fd)
    expected = {str(path.relative_to(upper)): path.lstat().st_ino for path in upper.rglob("*")}
    assert seen == {"": upper.stat().st_ino, **expected}
