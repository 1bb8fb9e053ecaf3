"""A SIF as LOWER, and as LOWER and UPPER at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.images.conftest import ext, fsck, names, squashfs
from tests.images.sifs import EXT, OVERLAY, PRIMARY, SQUASHFS, Entry, Layout
from tests.support.arena import Arena
from tests.support.layers import File, build

pytestmark = [pytest.mark.mount, pytest.mark.actors("root", "user")]


def _sif(arena: Arena, *overlays: Entry) -> Path:
    tree = build(arena.root / "tree", {"etc/conf": File(b"of the root\n"), "top": File(b"root")})
    root = squashfs(tree, arena.root / "root").read_bytes()
    return Layout([Entry(content=root, filesystem=SQUASHFS, use=PRIMARY), *overlays]).write(arena.root / "app.sif")


def _overlay(data: bytes, filesystem: int) -> Entry:
    return Entry(content=data, filesystem=filesystem, use=OVERLAY, group=1)


def test_its_layers_lie_in_their_order(arena: Arena) -> None:
    first = squashfs(build(arena.root / "one", {"one": File(b"1"), "top": File(b"1")}), arena.root / "first")
    over = build(arena.root / "two", {"upper/two": File(b"2"), "upper/top": File(b"2"), "work/x": File(b"")})
    second = ext(arena.root / "second", size="4M", tree=over)
    image = _sif(arena, _overlay(first.read_bytes(), SQUASHFS), _overlay(second.read_bytes(), EXT))
    before = image.read_bytes()
    with arena.mount(image) as mount:
        assert sorted(os.listdir(mount.merged)) == ["etc", "one", "top", "two"]
        assert (mount / "top").read_text() == "2"
        (mount / "etc/conf").write_text("changed\n")
    assert image.read_bytes() == before


def test_its_overlay_is_written(arena: Arena) -> None:
    empty = ext(arena.root / "empty", size="4M").read_bytes()
    image = _sif(arena, _overlay(empty, EXT))
    for number in range(2):
        with arena.mount(image, upper=image) as mount:
            assert (mount / "etc/conf").read_text() == ("of the root\n", "changed\n")[number]
            (mount / "etc/conf").write_text("changed\n")
            (mount / "new").write_text("x")
    (arena.root / "part").write_bytes(_part(image.read_bytes(), len(empty)))
    fsck(arena.root / "part")
    assert names(arena.root / "part") == {"etc", "new"}
    with arena.mount_read_only(image) as mount:
        assert (mount / "etc/conf").read_text() == "changed\n"


def _part(data: bytes, size: int) -> bytes:
    """The only ext filesystem in a file: it begins 1080 bytes before its magic."""
    offset = next(at for at in range(0, len(data), 4096) if data[at + 1080 : at + 1082] == b"\x53\xef")
    return data[offset : offset + size]


def test_one_without_an_overlay_cannot_be_written(arena: Arena) -> None:
    image = _sif(arena)
    done = arena.place.fuseunion(image, image, arena.directory("merged"))
    assert done.returncode == 3 and "no writable overlay partition" in done.stderr, done.stderr
