"""Special files, and the renames that leave a whiteout."""

from __future__ import annotations

import errno
import os
import socket
import stat

import pytest

from tests.support import libc
from tests.support.arena import Arena
from tests.support.layers import Device, File


def test_a_whiteout_cannot_be_made_by_hand(arena: Arena) -> None:
    """mknod of a 0/0 character device answers EPERM (as overlayfs), else whole subtrees would vanish."""
    lower = arena.lower({"d/f": File()})
    with arena.mount(lower) as mount:
        for name in ("new", "d/new"):
            with pytest.raises(PermissionError):
                os.mknod(mount / name, stat.S_IFCHR | 0o600, os.makedev(0, 0))
        assert os.listdir(mount / "d") == ["f"]


@pytest.mark.actors("root")
def test_device_nodes(arena: Arena) -> None:
    """Root makes devices and deletes lower ones."""
    lower = arena.lower({"lower": Device(kind=stat.S_IFBLK, major=7, minor=200)})
    with arena.mount(lower) as mount:
        os.mknod(mount / "new", stat.S_IFCHR | 0o640, os.makedev(1, 5))
        assert (mount / "new").stat().st_rdev == os.makedev(1, 5)
        assert (mount / "lower").stat().st_rdev == os.makedev(7, 200)
        (mount / "lower").rename(mount / "moved")
        mount.stop()
        mount.start()
        assert (mount / "moved").stat().st_rdev == os.makedev(7, 200)
        (mount / "moved").unlink()
        (mount / "new").unlink()
        assert os.listdir(mount.merged) == []


@pytest.mark.actors("user", "userns")
def test_device_nodes_are_not_for_users(arena: Arena) -> None:
    """Without the privilege mknod answers EPERM, as on any filesystem."""
    lower = arena.lower({})
    with arena.mount(lower) as mount, pytest.raises(PermissionError):
        os.mknod(mount / "new", stat.S_IFCHR | 0o640, os.makedev(1, 5))


def test_fifo_and_socket_carry_data(arena: Arena) -> None:
    """Fifos and sockets of lower and of upper connect programs."""
    lower = arena.lower({"fifo": Device(kind=stat.S_IFIFO, mode=0o600)})
    with arena.mount(lower) as mount:
        os.mkfifo(mount / "new")
        for name in ("fifo", "new"):
            reader = os.open(mount / name, os.O_RDONLY | os.O_NONBLOCK)
            writer = os.open(mount / name, os.O_WRONLY | os.O_NONBLOCK)
            os.write(writer, b"through")
            assert os.read(reader, 100) == b"through"
            os.close(reader)
            os.close(writer)
        here = os.getcwd()
        os.chdir(mount.merged)
        try:
            with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
                server.bind("socket")
                server.listen()
                client.connect("socket")
                accepted, _ = server.accept()
                with accepted:
                    client.sendall(b"hello")
                    assert accepted.recv(100) == b"hello"
        finally:
            os.chdir(here)
        (mount / "socket").unlink()


def test_rename_flags(arena: Arena) -> None:
    """NOREPLACE and EXCHANGE work over all layers; a flag that does not exist is EINVAL."""
    lower = arena.lower({"a": File(b"a"), "b": File(b"b")})
    with arena.mount(lower) as mount:
        a, b, c = (os.fsencode(mount / name) for name in "abc")
        with pytest.raises(FileExistsError):
            libc.rename(a, b, libc.RenameFlag.NOREPLACE)
        libc.rename(a, b, libc.RenameFlag.EXCHANGE)
        assert (mount / "a").read_bytes() == b"b"
        libc.rename(a, c, libc.RenameFlag.NOREPLACE)
        with pytest.raises(FileNotFoundError):
            libc.rename(b, a, libc.RenameFlag.EXCHANGE)
        with pytest.raises(OSError) as caught:
            libc.rename(a, b, libc.RenameFlag.EXCHANGE | libc.RenameFlag.NOREPLACE)
        assert caught.value.errno == errno.EINVAL
        mount.stop()
        mount.start()
        assert {name: (mount / name).read_bytes() for name in os.listdir(mount.merged)} == {"b": b"a", "c": b"b"}


def test_rename_that_leaves_a_whiteout(arena: Arena) -> None:
    """RENAME_WHITEOUT is accepted: the old name is gone, for good."""
    lower = arena.lower({"a": File(b"a")})
    with arena.mount(lower) as mount:
        (mount / "new").write_bytes(b"n")
        for name in ("a", "new"):
            libc.rename(os.fsencode(mount / name), os.fsencode(mount / f"{name}-moved"), libc.RenameFlag.WHITEOUT)
        assert sorted(os.listdir(mount.merged)) == ["a-moved", "new-moved"]
        mount.stop()
        mount.start()
        assert sorted(os.listdir(mount.merged)) == ["a-moved", "new-moved"]
