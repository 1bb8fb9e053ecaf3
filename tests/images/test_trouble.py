"""What goes wrong with images: locks, programs that are missing or die, crashes, no space, hostile files."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
from pathlib import Path

import pytest

from tests.images.conftest import content, ext, fsck, names, repair, squashfs
from tests.support import loops, processes
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.layers import File, build
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.actors("root", "user")]


def _refused(arena: Arena, *arguments: str | Path, code: int = 3) -> str:
    merged = arena.directory("merged")
    done = arena.place.fuseunion(*arguments, merged)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_an_upper_that_cannot_be_listed(arena: Arena) -> None:
    """What was opened of it is closed, or the end of its program would be waited for in vain."""
    lower = arena.lower({"file": File(b"x")})
    image = ext(arena.root / "image", kind="ext3")
    with arena.mount(lower, upper=image) as mount:
        (mount / "new").write_text("x")
    subprocess.run(
        ["debugfs", "-w", "-R", "set_inode_field /upper block[0] 4294967", image], check=True, capture_output=True
    )
    said = _refused(arena, lower, image)
    # Of fuse2fs, or of the kernel.
    assert "cannot be used: Input/output error" in said or "cannot be used: Structure needs cleaning" in said
    assert "repair it with: e2fsck -f" in said
    assert processes.with_token(arena.place.token) == []


# -- locks -------------------------------------------------------------------------------------------------------------


def test_many_readers_or_one_writer(arena: Arena) -> None:
    lower = arena.lower({"file": File(b"x")})
    image = ext(arena.root / "image")
    with arena.mount(lower, upper=image) as mount:
        (mount / "new").write_text("x")
        for words in ((lower, image), ("--ephemeral", f"{image}:{lower}")):
            done = arena.place.fuseunion(*words, arena.directory("other"))
            assert done.returncode == 4, done.stderr
            assert f"at '{mount.merged}'" in done.stderr and f"process {mount.daemon}" in done.stderr
    with arena.mount_read_only(image, lower) as one, arena.mount_read_only(image, lower, merged="two") as two:
        assert (one / "new").exists() and (two / "new").exists()
        done = arena.place.fuseunion(lower, image, arena.directory("other"))
        assert done.returncode == 4 and "is in use" in done.stderr, done.stderr
    with arena.mount(lower, upper=image) as mount:
        assert (mount / "new").exists()


def test_the_same_image_twice(arena: Arena) -> None:
    lower = arena.lower({"file": File(b"x")})
    image, other = ext(arena.root / "image"), squashfs(lower, arena.root / "squashfs")
    (arena.root / "link").symlink_to("squashfs")
    assert "same file" in _refused(arena, f"{other}:{arena.root / 'link'}", image)
    assert "same file" in _refused(arena, image, image)
    assert "lies inside" in _refused(arena, arena.root, image)
    assert "its own work directory" in _refused(arena, "--work", arena.directory("work"), lower, image)
    fsck(image)


# -- the end of a process ----------------------------------------------------------------------------------------------


def _write(merged: Path, name: str, data: bytes) -> None:
    with open(merged / name, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@pytest.mark.parametrize("through", ["writer", "reader", "directory"])
def test_the_daemon_is_killed(arena: Arena, through: str) -> None:
    lower = arena.lower({"file": File(b"x" * 10_000)})
    image = ext(arena.root / "image")
    mount = arena.mount(lower, upper=image)
    mount.start()
    (mount / "file").write_bytes(b"y" * 20_000)
    fd = os.open(mount / "file" if through != "directory" else mount.merged, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    mount.kill()
    wait_until(lambda: not processes.with_token(arena.place.token), "the program that shows the image to end")
    assert loops.left_of(arena.root) == []
    fsck(image)
    assert content(image, "/upper/file") == b"y" * 20_000
    with arena.mount(lower, upper=image) as again:
        assert (again / "file").read_bytes() == b"y" * 20_000


@pytest.mark.parametrize("through", ["writer", "reader", "directory", "sync"])
def test_the_program_is_killed(arena: Arena, through: str) -> None:
    lower = arena.lower({"file": File(b"x" * 10_000), "other": File(b"x")})
    image = ext(arena.root / "image")
    tolerated = "has ended|not put in order|cannot|not connected|aborted"
    mount = arena.mount(lower, upper=image, options=["images=fuse"], tolerated=tolerated)
    mount.start()
    _write(mount.merged, "file", b"y" * 20_000)
    with open(mount / "new", "wb") as file:
        file.write(b"z" * 50_000)
        if through == "writer":
            file.flush()
            os.fsync(file.fileno())
    if through == "sync":
        assert arena.place.fuseunion("sync", mount.merged).returncode == 0
    elif through != "writer":
        fd = os.open(mount / "new" if through == "reader" else mount.merged, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    os.kill(mount.programs[0], signal.SIGKILL)
    wait_until(lambda: "has ended" in mount.log(), "the daemon to see it")
    assert "fuse2fs" in mount.log() and str(image) in mount.log()
    with pytest.raises(OSError) as caught:
        (mount / "more").write_text("x")
    assert caught.value.errno in (errno.ENOTCONN, errno.EIO, errno.ECONNABORTED)
    assert mount.daemon in processes.with_token(arena.place.token)
    arena.place.fuseunion("umount", mount.merged)
    wait_until(lambda: not processes.with_token(arena.place.token), "the daemon to end")
    said = _refused(arena, lower, image)
    assert "e2fsck -f" in said
    repair(image)
    assert content(image, "/upper/file") == b"y" * 20_000
    assert "new" in names(image)
    if through != "directory":
        assert content(image, "/upper/new") == b"z" * 50_000
    with arena.mount(lower, upper=image) as again:
        (again / "more").write_text("x")
    fsck(image)


# -- no space ----------------------------------------------------------------------------------------------------------


def test_a_full_image(arena: Arena) -> None:
    lower = arena.lower({"big": File(b"b" * 3_000_000), "small": File(b"s")})
    image = ext(arena.root / "image", size="2M")
    with arena.mount(lower, upper=image) as mount:
        (mount / "kept").write_text("kept")
        with pytest.raises(OSError) as caught, open(mount / "big", "r+b") as file:
            file.write(b"changed")
            file.flush()
        assert caught.value.errno == errno.ENOSPC
        assert (mount / "big").read_bytes() == b"b" * 3_000_000
        with pytest.raises(OSError) as caught, open(mount / "fill", "wb", buffering=0) as file:
            while True:
                file.write(bytes(65536))
        assert caught.value.errno == errno.ENOSPC
        (mount / "fill").unlink()
        (mount / "small").write_text("changed")
    fsck(image)
    assert {"kept", "small"} <= names(image)
    assert content(image, "/upper/kept") == b"kept"


# -- mistakes and malice -----------------------------------------------------------------------------------------------


def test_hostile_files(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    places = arena.directory("places")
    monkeypatch.setenv("TMPDIR", str(places))
    lower = arena.lower({"file": File(b"x")})
    good, image = squashfs(lower, arena.root / "good"), ext(arena.root / "image")
    data = good.read_bytes()
    root = arena.root
    (root / "text").write_text("text")
    (root / "short").write_bytes(data[: int.from_bytes(data[40:48], "little") - 1])
    (root / "head").write_bytes(data[:64])
    # The table of inodes lies beyond the end: only squashfuse sees that.
    forged = bytearray(data)
    struct.pack_into("<Q", forged, 64, 2**63 - 1)
    (root / "forged").write_bytes(forged)
    (root / "garbage").write_bytes(b"hsqs" + os.urandom(8192))
    os.mkfifo(root / "fifo")
    for name, said in (
        ("text", "is not a directory, nor an image"),
        ("short", "cut short"),
        ("head", "damaged"),
        ("forged", "cannot be used"),
        ("garbage", "squashfs image"),
        ("fifo", "not a directory"),
        ("missing", "does not exist"),
    ):
        assert said in _refused(arena, "--read-only", root / name), name
    assert "not a directory" in _refused(arena, "--read-only", "/dev/zero")
    assert "can be a LOWER only" in _refused(arena, lower, good)
    assert "every LOWER is only read" in _refused(arena, "--read-only", f"{good}:ro")
    before = image.read_bytes()
    for number in (0x0002, 0x0000):
        struct.pack_into("<H", changed := bytearray(before), 1024 + 58, number)
        image.write_bytes(changed)
        assert "e2fsck -f" in _refused(arena, lower, image)
        assert image.read_bytes() == changed
    assert not os.listdir(places)


def test_a_missing_program(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    lower = arena.lower({"file": File(b"x")})
    image, upper = squashfs(lower, arena.root / "squashfs"), ext(arena.root / "image")
    monkeypatch.setenv("PATH", "/nowhere")
    fuse = ("-o", "images=fuse")
    assert "install the package squashfuse" in _refused(arena, *fuse, "--read-only", image, code=5)
    assert "install the package fuse2fs" in _refused(arena, *fuse, lower, upper, code=5)


def test_other_engines_say_that_they_cannot(arena: Arena) -> None:
    image = squashfs(build(arena.root / "tree", {"file": File(b"x")}), arena.root / "image")
    is_root = arena.actor.role is Role.ROOT
    by_kernel = "not to be mounted by the kernel (images=fuse)" if is_root else "for the machine's root only"
    for engine, says in (("kernel", by_kernel), ("ranch", "it cannot show image files")):
        assert says in _refused(arena, "--engine", engine, "-o", "images=fuse", image, arena.upper, code=5)


@pytest.mark.actors("root")
def test_what_a_stranger_made_is_not_believed_by_root(arena: Arena) -> None:
    lower = arena.lower({"su": File(b"x", mode=0o4755)})
    image, upper = squashfs(lower, arena.root / "image"), ext(arena.root / "upper.img")
    for path in (image, upper):
        os.chown(path, arena.actor.user.uid, arena.actor.user.gid)
    with arena.mount_read_only(image) as mount:
        mounted = subprocess.run(
            ["findmnt", "-no", "OPTIONS", str(mount.merged)], capture_output=True, text=True, check=True
        ).stdout
        assert "nosuid" in mounted and "nodev" in mounted
    assert "root does not write in it" in _refused(arena, lower, upper)
