"""Layers among mounts: a layer ends where another filesystem is mounted in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.layers import Dir, File


@contextmanager
def _tmpfs(path: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.actors("root", "userns")
def test_upper_on_a_filesystem_mounted_in_the_lower(arena: Arena) -> None:
    """As with the lower `/` and an upper on /dev/shm: the upper is not part of the lower, and does not show in it."""
    lower = arena.lower({"f": File(b"f"), "mnt": Dir()})
    with _tmpfs(lower / "mnt"):
        with arena.mount(lower, upper=lower / "mnt/upper", work=lower / "mnt/work") as mount:
            assert os.listdir(mount / "mnt") == []
            (mount / "f").write_bytes(b"changed")
            (mount / "mnt/new").touch()
        assert (lower / "mnt/upper/f").read_bytes() == b"changed"
        assert (lower / "mnt/upper/mnt/new").exists()


@pytest.mark.actors("root", "userns")
def test_mounts_in_a_lower_are_empty_directories(arena: Arena) -> None:
    """As in overlayfs, whose layers are private clones of one mount."""
    lower = arena.lower({"mnt/hidden": File(), "other/f": File()})
    with _tmpfs(lower / "mnt"):
        (lower / "mnt/shown").touch()
        with arena.mount(lower) as mount:
            assert os.listdir(mount / "mnt") == []
            assert not (mount / "mnt/shown").exists()
            assert sorted(os.listdir(mount.merged)) == ["mnt", "other"]
