"""Layers among mounts: a layer ends where another filesystem is mounted in it."""

from __future__ import annotations

import errno
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
            assert os.listxattr(mount / "mnt") == []


@pytest.mark.actors("root", "userns")
def test_merged_within_a_lower(arena: Arena) -> None:
    """It shows itself as an empty directory."""
    lower = arena.lower({"merged": Dir(), "f": File(b"f")})
    with arena.mount(lower, merged=lower / "merged") as mount:
        assert os.listdir(mount / "merged") == []
        for ask in (os.listxattr, lambda path: os.getxattr(path, "security.capability")):
            for _ in range(2):  # as a filesystem without any says, which ls -l and cp -a know
                with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
                    ask(mount / "merged")
        (mount / "f").write_bytes(b"changed")
        assert (mount / "f").read_bytes() == b"changed"
