"""Names: every byte, every length, and those that would collide with a mark on disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.differential.recipes import NAMES
from tests.support.arena import Arena
from tests.support.layers import File, Name, Node
from tests.support.twin import Twin

USES: dict[str, Callable[[bytes, bytes], object]] = {
    "create": lambda path, _: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)),
    "mkdir": lambda path, _: os.mkdir(path),
    "mknod": lambda path, _: os.mknod(path),
    "symlink": lambda path, _: os.symlink(b"target", path),
    "link": lambda path, existing: os.link(existing, path),
    "rename": lambda path, existing: os.rename(existing, path),
}

LOOKUPS: dict[str, Callable[[bytes, bytes], object]] = {
    "stat": lambda path, _: os.stat(path),
    "unlink": lambda path, _: os.unlink(path),
}


def test_odd_names(arena: Arena) -> None:
    """Names that are not text, with separators of other programs, and of 255 bytes: in lower, changed and new."""
    description: dict[Name, Node] = {name: File(b"lower") for name in NAMES}
    description.update({b"dir/" + name: File(b"lower") for name in NAMES})
    lower = arena.lower(description)
    with arena.mount(lower) as mount:
        twin = Twin(arena, mount)
        for name in NAMES:

            def use(root: Path, name: bytes = name) -> None:
                top = os.fsencode(root)
                os.truncate(os.path.join(top, name), 2)
                os.unlink(os.path.join(top, b"dir", name))
                os.rename(os.path.join(top, name), os.path.join(top, b"dir", name))
                os.mkdir(os.path.join(top, name))

            twin.both(use)
        twin.remount()


def test_a_name_that_is_too_long(arena: Arena) -> None:
    """NAME_MAX + 1 bytes answer ENAMETOOLONG in every call, also in lookups."""
    lower = arena.lower({"f": File()})
    with arena.mount(lower) as mount:
        existing, path = os.fsencode(mount / "f"), os.fsencode(mount.merged) + b"/" + b"n" * 256
        for call, use in {**USES, **LOOKUPS}.items():
            with pytest.raises(OSError) as caught:
                use(path, existing)
            assert caught.value.errno == errno.ENAMETOOLONG, call
        assert os.statvfs(mount.merged).f_namemax <= 255


@pytest.mark.parametrize("call", USES)
def test_a_name_that_would_be_a_whiteout(arena: Arena, call: str) -> None:
    """`.wh.` names are marks on disk: making one is refused, and asking for one finds nothing."""
    lower = arena.lower({"f": File(), "kept": File()})
    with arena.mount(lower) as mount:
        existing = os.fsencode(mount / "f")
        for name in (b".wh.kept", b".wh..wh..opq"):
            path = os.fsencode(mount.merged) + b"/" + name
            with pytest.raises(OSError) as caught:
                USES[call](path, existing)
            assert caught.value.errno == errno.EINVAL
            assert not os.path.lexists(path)
        assert sorted(os.listdir(mount.merged)) == ["f", "kept"]


def test_paths_longer_than_path_max(arena: Arena) -> None:
    """Depth beyond PATH_MAX, reached by relative steps, is no limit: for lookup, copy-up, rename and deletion."""
    part, depth = "d" * 200, 30
    lower = arena.lower({"start/keep": File()})
    deepest = os.open(lower / "start", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(part, dir_fd=deepest)
        deepest = _step(deepest, part)
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=deepest))
    os.close(deepest)
    with arena.mount(lower) as mount:
        directory = os.open(mount / "start", os.O_RDONLY)
        for _ in range(depth):
            directory = _step(directory, part)
        file = os.open("f", os.O_WRONLY | os.O_APPEND, dir_fd=directory)
        os.write(file, b"deep")
        os.close(file)
        os.rename("f", "g", src_dir_fd=directory, dst_dir_fd=directory)
        assert os.stat("g", dir_fd=directory).st_size == 4
        assert os.listdir(directory) == ["g"]
        os.mkdir("more", dir_fd=directory)
        os.close(directory)
        (mount / "start").rename(mount / "moved")
        _remove_deep(mount.merged, "moved")
        assert os.listdir(mount.merged) == []
    _remove_deep(lower, "start")
    arena.guard(lower)
    _remove_deep(arena.root, "upper")


def _step(directory: int, name: str) -> int:
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
    os.close(directory)
    return inner


def _remove_deep(parent: Path, name: str) -> None:
    """`rm -r` that never needs a path longer than one name (shutil's recursion holds a descriptor per level)."""
    parent_fd = os.open(parent, os.O_RDONLY)
    try:
        shutil.rmtree(name, dir_fd=parent_fd)
    finally:
        os.close(parent_fd)
