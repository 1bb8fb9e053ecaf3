"""st_ino: unique over all layers, equal to d_ino, the same after copy-up and remount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import libc, tree
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Link, Name, Node, Symlink, build
from tests.support.mounts import FuseunionMount

LAYER: dict[Name, Node] = {
    "both/{}": File(),
    "{}/f": File(b"1"),
    "{}/g": File(b"2"),
    "{}/g2": Link("{}/g"),
    "{}/l": Symlink("f"),
    "{}/e": Dir(),
    "both": Dir(),
}


def _layer(name: str) -> dict[Name, Node]:
    found: dict[Name, Node] = {}
    for path, node in LAYER.items():
        named = node if not isinstance(node, Link) else Link(str(node.target).format(name))
        found[str(path).format(name)] = named
    return found


def _numbers(root: Path) -> dict[bytes, int]:
    return {path: status.st_ino for path, status in tree.walk(root)}


def _check(mount: FuseunionMount) -> None:
    assert tree.inode_faults(mount.merged) == []
    before = _numbers(mount.merged)
    for path, status in tree.walk(mount.merged):
        full = os.path.join(os.fsencode(mount.merged), path)
        os.utime(full, ns=(5, 5), follow_symlinks=False)
        assert os.lstat(full).st_ino == status.st_ino, path
    for name in ("one", "two"):
        with open(mount / name / "f", "ab") as file:
            file.write(b"more")
    (mount / "new").mkdir()
    (mount / "new/f").write_bytes(b"3")
    after = _numbers(mount.merged)
    assert {path: after[path] for path in before} == before
    assert tree.inode_faults(mount.merged) == []
    mount.stop()
    mount.start()
    assert _numbers(mount.merged) == after
    assert tree.inode_faults(mount.merged) == []


def test_layers_on_one_filesystem(arena: Arena) -> None:
    """All numbers are unique, and none changes."""
    lowers = [arena.lower(_layer(name)) for name in ("one", "two")]
    with arena.mount(*lowers) as mount:
        _check(mount)


@pytest.mark.actors("root", "userns")
def test_layers_on_different_filesystems(arena: Arena) -> None:
    """Two fresh filesystems number their files alike; the merged tree must not."""
    lowers = []
    for name in ("one", "two"):
        directory = arena.directory(f"fs-{name}")
        libc.mount("tmpfs", str(directory), "tmpfs")
        lowers.append(build(directory / "layer", _layer(name)))
        arena.guard(lowers[-1])
    collisions = set(_numbers(lowers[0]).values()) & set(_numbers(lowers[1]).values())
    assert collisions, "the two lowers were meant to have numbers in common"
    try:
        with arena.mount(*lowers) as mount:
            _check(mount)
        for lower in lowers:
            arena.release(lower)
    finally:
        for name in ("one", "two"):
            libc.umount(str(arena.directory(f"fs-{name}")), libc.MNT_DETACH)
