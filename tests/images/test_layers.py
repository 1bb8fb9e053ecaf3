"""Images as LOWER and UPPER of a mount."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.images.conftest import ext, fsck, names, squashfs
from tests.support.arena import Arena
from tests.support.layers import File, Symlink, build

pytestmark = [pytest.mark.mount, pytest.mark.actors("root", "user", "userns")]

TREE = {"etc/conf": File(b"of the image\n"), "bin/tool": File(b"tool", mode=0o755), "link": Symlink("etc/conf")}


def _tree(arena: Arena) -> Path:
    return build(arena.root / "tree", TREE)


def test_a_squashfs_lower(arena: Arena) -> None:
    image = squashfs(_tree(arena), arena.root / "image")
    before = image.read_bytes()
    with arena.mount(image) as mount:
        assert (mount / "etc/conf").read_text() == "of the image\n"
        assert os.readlink(mount / "link") == "etc/conf"
        (mount / "etc/conf").write_text("changed\n")
        (mount / "bin/tool").unlink()
        os.rename(mount / "etc", mount / "etc2")
        assert sorted(os.listdir(mount.merged)) == ["bin", "etc2", "link"]
    with arena.mount(image) as mount:
        assert (mount / "etc2/conf").read_text() == "changed\n"
        assert os.listdir(mount / "bin") == []
    assert image.read_bytes() == before


@pytest.mark.parametrize("images", ["auto", "fuse"])
def test_an_ext_upper(arena: Arena, images: str) -> None:
    lower = arena.lower({"file": File(b"of the lower"), "gone": File(b""), "dir/file": File(b"x")})
    image = ext(arena.root / "image")
    for number in range(2):
        with arena.mount(lower, upper=image, options=[f"images={images}"]) as mount:
            assert (mount / "file").read_text() == ("of the lower", "changed")[number]
            (mount / "file").write_text("changed")
            assert (mount / "gone").exists() == (number == 0)
            (mount / "gone").unlink(missing_ok=True)
            (mount / "new").write_bytes(bytes(100_000))
            if number == 0:
                os.rename(mount / "dir", mount / "moved")
            assert (mount / "moved/file").read_text() == "x"
        fsck(image)
    assert names(image) == {"file", "gone", "new", "moved", "dir"}


def test_both_are_images(arena: Arena) -> None:
    lower, upper = squashfs(_tree(arena), arena.root / "lower"), ext(arena.root / "image", kind="ext3")
    with arena.mount(lower, upper=upper) as mount:
        (mount / "etc/conf").write_text("changed\n")
        with open(mount / "etc/new", "w") as file:
            file.write("x")
            file.flush()
            os.fsync(file.fileno())
        assert stat.S_IMODE((mount / "bin/tool").stat().st_mode) == 0o755
    fsck(upper)
    assert names(upper, "/upper/etc") == {"conf", "new"}
    assert names(upper, "/work") <= {"work"}


def test_an_overlay_image_is_one_more_lower(arena: Arena) -> None:
    lower = arena.lower({"file": File(b"of the lower"), "gone": File(b"")})
    image = ext(arena.root / "image")
    with arena.mount(lower, upper=image) as mount:
        (mount / "file").write_text("of the image")
        (mount / "gone").unlink()
    before = image.read_bytes()
    with arena.mount(image, lower) as mount:
        assert (mount / "file").read_text() == "of the image"
        assert not (mount / "gone").exists()
        (mount / "file").write_text("above")
    with arena.mount_read_only(image, lower) as mount:
        assert (mount / "file").read_text() == "of the image"
    assert image.read_bytes() == before


def test_a_whole_filesystem_is_shown_as_it_is(arena: Arena) -> None:
    image = ext(arena.root / "image", tree=_tree(arena))
    with arena.mount(image) as mount:
        assert set(os.listdir(mount.merged)) == {"etc", "bin", "link", "lost+found"}


@pytest.mark.actors("root")
def test_a_tar_archive(arena: Arena) -> None:
    archive = arena.root / "archive"
    subprocess.run(["tar", "-czf", archive, "-C", _tree(arena), "."], check=True)
    before = archive.read_bytes()
    with arena.mount(archive, tolerated="ratarmount") as mount:
        assert (mount / "etc/conf").read_text() == "of the image\n"
        (mount / "etc/conf").write_text("changed\n")
        assert os.access(mount / "bin/tool", os.X_OK)
    assert archive.read_bytes() == before
    assert sorted(path.name for path in arena.root.iterdir() if path.name.startswith("archive")) == ["archive"]
