"""Each `fuseunion image` command without each of the programs that it needs: one line, and nothing was changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fuseunion.images.tools import opened, programs
from tests.images.commands import image, succeed
from tests.images.conftest import squashfs
from tests.support import tree
from tests.support.arena import Arena
from tests.support.layers import File, build

pytestmark = [pytest.mark.mount, pytest.mark.actors("root", "user")]

PACKAGES = {
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "fuse2fs": "fuse2fs",
    "mksquashfs": "squashfs-tools",
    "squashfuse": "squashfuse",
    "fusermount3": "fuse3",
}
"""What the commands start, and the package that a message names."""

REACH = {"fuse2fs", "fusermount3"}
"""What is needed to reach into an ext image."""

COMMANDS: dict[str, tuple[list[str], set[str]]] = {
    "create": (["create", "--size", "16M", "--sparse", "new"], {"mke2fs", "debugfs"}),
    "info": (["info", "x.img"], set()),
    "check": (["check", "x.img"], {"e2fsck"}),
    "resize": (["resize", "x.img", "20M"], {"e2fsck", "resize2fs"}),
    "chown": (["chown", "x.img", "--to", "7:7"], REACH),
    "clone": (["clone", "x.img", "new"], set()),
    "ls": (["ls", "x.img"], REACH),
    "ls of a squashfs": (["ls", "x.sqfs"], {"squashfuse", "fusermount3"}),
    "pack": (["pack", "up", "new"], {"mke2fs", "debugfs"} | REACH),
    "unpack": (["unpack", "x.img", "new"], REACH),
    "squash": (["squash", "up", "new"], {"mksquashfs"}),
}


WITHOUT = {
    "debugfs": {"info": "owner of upper:    not known"},
    "fuse2fs": {
        "info": "state:             clean",
        "check": "was not looked at: ext image 'x.img' needs fuse2fs",
        "resize": "is 20.0M",
        "clone": "copied",
        "create": "made",
        "squash": "squashed",
        "ls of a squashfs": "file",
    },
    "mksquashfs": {"unpack": "unpacked"},
    "squashfuse": {"ls": "upper"},
}
"""What goes on without a program, and what it says."""


def _prepare(here: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of each kind and an upper in the working directory, and a PATH that has all programs but one."""
    build(here / "up", {"file": File(b"x")})
    succeed("create", "--size", "16M", "--sparse", here / "x.img")
    squashfs(here / "up", here / "x.sqfs")
    for image_file in ("x.img", "x.sqfs") if os.geteuid() == 0 else ():
        os.chown(here / image_file, 1, 1)  # an image of root's own is the kernel's to show
    monkeypatch.setattr(opened, "_PATIENCE", 0.0)
    monkeypatch.setattr(programs, "_PLACES", ())
    monkeypatch.chdir(here)
    (here / "bin").mkdir()
    for name in PACKAGES:
        for each in (name, "squashfuse_ll") if name == "squashfuse" else (name,):
            found = shutil.which(each, path="/usr/sbin:/usr/bin:/sbin:/bin")
            if name != missing and found:
                (here / "bin" / each).symlink_to(found)
    monkeypatch.setenv("PATH", str(here / "bin"))


@pytest.mark.parametrize("missing", PACKAGES)
def test_one_line_and_nothing_changed(arena: Arena, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    _prepare(arena.root, missing, monkeypatch)
    before = tree.snapshot(arena.root)
    needed_by_all = missing != "fusermount3" or os.geteuid() != 0
    for name, (arguments, needed) in COMMANDS.items():
        if name == "pack" and missing in REACH and os.geteuid() == 0:
            continue  # what root makes is root's own
        if missing in needed and needed_by_all:
            done = image(*arguments)
            assert (done.code, done.out) == (5, ""), (name, done)
            assert done.err.startswith("fuseunion: ") and done.err.count("\n") == 1, (name, done)
            assert missing in done.err and f"the package {PACKAGES[missing]}" in done.err, (name, done)
    assert not tree.differences(before, tree.snapshot(arena.root), ("kind", "mode", "size", "content"))
    for name, says in WITHOUT.get(missing, {}).items():
        assert says in succeed(*COMMANDS[name][0])
        if (arena.root / "new").is_dir():
            shutil.rmtree(arena.root / "new")
        (arena.root / "new").unlink(missing_ok=True)
    monkeypatch.undo()
