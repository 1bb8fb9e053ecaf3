"""Files without a name: open(2) with O_TMPFILE, and linkat(2), which gives them one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.layers import Dir, File
from tests.support.product import WITH_EXTENSION

pytestmark = [
    pytest.mark.actors("root", "user"),
    pytest.mark.skipif(not WITH_EXTENSION, reason="pyfuse3 has no handler for it"),
]


def _open(directory: Path, flags: int = 0, mode: int = 0o640) -> int:
    return os.open(directory, os.O_TMPFILE | os.O_RDWR | flags, mode)


def _link(fd: int, path: Path) -> None:
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)


@pytest.mark.parametrize("options", [(), ("--fakeroot",)], ids=["usual", "stored"])
def test_gets_a_name(arena: Arena, options: tuple[str, ...]) -> None:
    """Beside a lower, over a deleted name of it, and in a directory that nothing else copies up."""
    lower = arena.lower({"d": Dir(), "d/deleted": File(b"lower"), "d/there": File(b"lower")})
    with arena.mount(lower, arguments=options) as mount:
        (mount / "d/deleted").unlink()
        fd = _open(mount / "d")
        try:
            os.write(fd, b"contents")
            made = os.fstat(fd)
            assert (made.st_nlink, made.st_size, stat.S_IMODE(made.st_mode)) == (0, 8, 0o640)
            assert os.listdir(mount / "d") == ["there"]
            with pytest.raises(FileExistsError):
                _link(fd, mount / "d/there")
            _link(fd, mount / "d/deleted")
            os.write(fd, b" and more")
            assert (mount / "d/deleted").stat().st_ino == made.st_ino
            _link(fd, mount / "d/second")
            assert os.fstat(fd).st_nlink == 2
        finally:
            os.close(fd)
        assert (mount / "d/second").read_bytes() == b"contents and more"
        mount.stop()
        mount.start()
        assert (mount / "d/deleted").read_bytes() == b"contents and more"
        assert (mount / "d/deleted").stat().st_nlink == 2
        assert (mount / "d/there").read_bytes() == b"lower"


def test_is_what_a_named_file_would_be(arena: Arena) -> None:
    """Umask, and the group of a set-group-ID directory."""
    lower = arena.lower({"d": Dir(mode=0o2775)})
    with arena.mount(lower) as mount:
        os.close(os.open(mount / "d/named", os.O_CREAT | os.O_WRONLY, 0o2666))
        fd = _open(mount / "d", mode=0o2666)
        named, made = (mount / "d/named").stat(), os.fstat(fd)
        os.close(fd)
        assert (made.st_mode, made.st_uid, made.st_gid) == (named.st_mode, named.st_uid, named.st_gid)


def test_leaves_nothing(arena: Arena) -> None:
    """Without a name it is gone when it is closed; with O_EXCL it gets none."""
    with arena.mount(arena.lower({"d": Dir()})) as mount:
        fd = _open(mount / "d", os.O_EXCL)
        os.write(fd, bytes(1 << 16))
        assert os.pread(fd, 4, 100) == bytes(4)
        with pytest.raises(FileNotFoundError):
            _link(fd, mount / "d/name")
        os.close(fd)
        assert os.listdir(mount / "d") == []
    assert not (arena.upper / "d").exists(), "nothing was copied up for it"


def test_of_a_deleted_file_stays_without_a_name(arena: Arena) -> None:
    """Only what never had a name can get one."""
    with arena.mount(arena.lower({"f": File(b"x")})) as mount:
        (mount / "made").write_bytes(b"made")
        for name in ("f", "made"):
            fd = os.open(mount / name, os.O_RDWR)
            os.write(fd, b"y")
            (mount / name).unlink()
            with pytest.raises(FileNotFoundError):
                _link(fd, mount / "again")
            os.close(fd)


def test_where_nothing_can_be_written(arena: Arena) -> None:
    with arena.mount_read_only(arena.lower({"d": Dir()})) as mount, pytest.raises(OSError) as caught:
        _open(mount / "d")
    assert caught.value.errno == errno.EROFS
