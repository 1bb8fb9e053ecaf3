"""lsattr(1) and chattr(1): ioctl_iflags(2) on files and directories of both layers."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Symlink, build
from tests.support.mounts import FuseunionMount
from tests.support.product import WITH_EXTENSION

pytestmark = [
    pytest.mark.actors("root", "user"),
    pytest.mark.skipif(not WITH_EXTENSION, reason="pyfuse3 has no handler for it"),
]

NODUMP = "d"


def _flags(path: Path) -> str:
    listed = subprocess.run(["lsattr", "-d", path], check=True, capture_output=True, text=True)
    return listed.stdout.split()[0].replace("-", "").replace("e", "")


def _change(path: Path, change: str) -> None:
    subprocess.run(["chattr", change, path], check=True, capture_output=True)


def test_flags_of_both_layers(arena: Arena) -> None:
    lower = arena.lower({"lower": File(b"lower"), "directory": Dir(), "directory/file": File(b"x")})
    build(arena.upper, {"upper": File(b"upper")})
    _change(arena.upper / "upper", "+" + NODUMP)
    with arena.mount(lower) as mount:
        assert [_flags(mount / name) for name in ("lower", "upper", "directory")] == ["", NODUMP, ""]
        for name in ("lower", "directory"):
            _change(mount / name, "+" + NODUMP)
            assert _flags(mount / name) == NODUMP == _flags(arena.upper / name)
        _change(mount / "upper", "-" + NODUMP)
        assert _flags(arena.upper / "upper") == ""
        assert (mount / "lower").read_bytes() == b"lower"
        assert _flags(lower / "lower") == ""
    with arena.mount(lower) as mount:
        assert [_flags(mount / name) for name in ("lower", "upper", "directory")] == [NODUMP, "", NODUMP]


def test_the_time_of_change(arena: Arena) -> None:
    """It is another after the flags were changed, though the kernel knew the attributes."""
    lower = arena.lower({"lower": File(b"lower"), "directory": Dir()})
    build(arena.upper, {"upper": File(b"upper")})
    with arena.mount(lower) as mount:
        for name in ("lower", "upper", "directory"):
            for change in ("+" + NODUMP, "-" + NODUMP):
                before = (mount / name).stat().st_ctime_ns
                _change(mount / name, change)
                assert before < (mount / name).stat().st_ctime_ns == (arena.upper / name).stat().st_ctime_ns


def test_an_immutable_file(arena: Arena) -> None:
    """Root may make it one; whoever may not is told by the kernel, and nothing is copied up."""
    lower = arena.lower({"file": File(b"lower")})
    with arena.mount(lower) as mount:
        if arena.actor.role is Role.USER:
            with pytest.raises(subprocess.CalledProcessError):
                _change(mount / "file", "+i")
            assert os.listdir(arena.upper) == []
            return
        with open(mount / "file", "r+b") as opened:
            opened.write(b"upper")
            opened.flush()
            _change(mount / "file", "+i")
            with pytest.raises(PermissionError):
                (mount / "file").write_bytes(b"other")
            with pytest.raises(PermissionError):
                (mount / "file").unlink()
            _change(mount / "file", "-i")
            opened.write(b"!")
        assert (mount / "file").read_bytes() == b"upper!"
        (mount / "file").unlink()


def test_what_has_no_flags(arena: Arena) -> None:
    lower = arena.lower({"link": Symlink("nothing"), "file": File(b"x")})
    with arena.mount(lower) as mount:
        fd = os.open(mount / "file", os.O_RDONLY)
        try:
            with pytest.raises(OSError) as caught:
                fcntl.ioctl(fd, 0x1234, bytes(8))
            assert caught.value.errno == errno.ENOTTY
        finally:
            os.close(fd)
    alone = FuseunionMount(arena.place, [lower], None, arena.directory("alone"), (), ["--read-only"])
    with alone as mount, pytest.raises(subprocess.CalledProcessError):
        _change(mount / "file", "+" + NODUMP)
