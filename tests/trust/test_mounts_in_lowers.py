"""What is mounted inside a lower is not entered, be it dead or somebody else's."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import libc
from tests.support.arena import Arena
from tests.support.layers import File, build

pytestmark = [pytest.mark.actors("root"), pytest.mark.limit(40)]


@contextmanager
def dead_mount(path: Path) -> Iterator[None]:
    """A FUSE filesystem whose daemon is gone: every access answers ENOTCONN."""
    device = os.open("/dev/fuse", os.O_RDWR)
    libc.mount("dead", str(path), "fuse", 0, f"fd={device},rootmode=40000,user_id=0,group_id=0")
    os.close(device)
    try:
        yield
    finally:
        libc.umount(str(path), libc.MNT_DETACH)


@contextmanager
def live_mount(path: Path) -> Iterator[None]:
    """A filesystem with something in it, and marks on it."""
    libc.mount("live", str(path), "tmpfs", 0, "mode=700")
    os.setxattr(path, "trusted.overlay.opaque", b"y")
    os.setxattr(path, "trusted.secret", b"secret")
    (path / "secret").touch()
    try:
        yield
    finally:
        libc.umount(str(path), libc.MNT_DETACH)


@pytest.mark.parametrize("kind", [dead_mount, live_mount], ids=["dead", "live"])
def test_a_mounted_directory_is_an_empty_one(arena: Arena, kind: object) -> None:
    """A mount point that answered ENOTCONN kept its directory from being listed; the other's attributes were copied."""
    top = build(arena.directory("top"), {"d/good": File(b"good"), "d/m/below": File(b"")})
    bottom = arena.lower({"d/m/bottom": File(b"")})
    assert callable(kind)
    with kind(top / "d/m"), arena.mount(top, bottom) as mount:
        assert sorted(os.listdir(mount / "d")) == ["good", "m"]
        assert (mount / "d/good").read_bytes() == b"good"
        assert (mount / "d/m").is_dir()
        assert os.listdir(mount / "d/m") == ["bottom"]
        assert os.listxattr(mount / "d/m") == []
        os.chmod(mount / "d/m", 0o755)
        (mount / "d/m/new").write_text("new")
        assert sorted(os.listdir(mount / "d/m")) == ["bottom", "new"]
        assert os.listdir(arena.upper / "d/m") == ["new"]
        assert "trusted.secret" not in os.listxattr(arena.upper / "d/m")


def test_in_the_upper_nothing_of_it_is_changed(arena: Arena) -> None:
    upper = build(arena.upper, {"m/below": File(b"")})
    lower = arena.lower({})
    with live_mount(upper / "m"), arena.mount(lower) as mount:
        with pytest.raises(OSError) as caught:
            os.chmod(mount / "m", 0o755)
        assert caught.value.errno == errno.EXDEV
        assert (upper / "m").stat().st_mode & 0o777 == 0o700


def test_a_file_over_a_file(arena: Arena) -> None:
    """As container engines mount /etc/hosts: with `/` as a lower, that is the file to read."""
    lower = build(arena.directory("low"), {"hosts": File(b"below"), "given": File(b"given", xattrs={"user.x": b"x"})})
    libc.mount(str(lower / "given"), str(lower / "hosts"), "none", libc.MS_BIND)
    try:
        with arena.mount(lower) as mount:
            assert (mount / "hosts").read_bytes() == b"given"
            assert os.getxattr(mount / "hosts", "user.x") == b"x"
            with (mount / "hosts").open("ab") as file:
                file.write(b"+")
            assert (mount / "hosts").read_bytes() == b"given+"
            assert (lower / "given").read_bytes() == b"given"
    finally:
        libc.umount(str(lower / "hosts"), libc.MNT_DETACH)
