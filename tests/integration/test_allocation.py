"""fallocate(2) and lseek(2) through a mount: space, holes, zeros, in ranges that are given at once and in long ones."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from fuseunion.linux.syscalls import fallocate
from tests.support.arena import Arena
from tests.support.layers import File
from tests.support.product import WITH_EXTENSION

pytestmark = [
    pytest.mark.actors("root", "user"),
    pytest.mark.skipif(not WITH_EXTENSION, reason="pyfuse3 has no handler for it"),
]

KEEP_SIZE, PUNCH_HOLE = 1, 2
MIB = 1 << 20
SIZES = [MIB, 100 * MIB]


@pytest.mark.parametrize("size", SIZES)
def test_space_is_taken_and_given_back(arena: Arena, size: int) -> None:
    with arena.mount(arena.lower({"f": File(b"lower")})) as mount:
        with open(mount / "f", "r+b", buffering=0) as file:
            fd = file.fileno()
            fallocate(fd, KEEP_SIZE, 0, size)
            assert os.fstat(fd).st_size == 5 and os.fstat(fd).st_blocks * 512 >= size
            fallocate(fd, 0, 0, size)
            assert os.fstat(fd).st_size == size
            os.pwrite(fd, b"end", size - 3)
            fallocate(fd, KEEP_SIZE | PUNCH_HOLE, 3, size - 6)
            assert os.fstat(fd).st_blocks * 512 < MIB
            assert os.pread(fd, 5, 0) == b"low\0\0" and os.pread(fd, 5, size - 5) == b"\0\0end"
            with pytest.raises(OSError) as failure:
                fallocate(fd, PUNCH_HOLE, 0, size)
            assert failure.value.errno in (errno.EOPNOTSUPP, errno.EINVAL)
        assert (mount / "f").stat().st_size == size
    assert (arena.upper / "f").stat().st_size == size


@pytest.mark.parametrize("size", SIZES)
def test_set_id_bits_are_what_a_write_leaves(arena: Arena, size: int) -> None:
    with arena.mount(arena.lower({})) as mount:
        for name in ("written", "allocated"):
            with open(mount / name, "xb", buffering=0) as file:
                os.fchmod(file.fileno(), 0o6755)
                if name == "written":
                    file.write(b"x")
                else:
                    fallocate(file.fileno(), 0, 0, size)
        modes = [stat.S_IMODE((mount / name).stat().st_mode) for name in ("written", "allocated")]
        assert modes[0] == modes[1]


def test_where_data_is(arena: Arena) -> None:
    """SEEK_DATA and SEEK_HOLE, and what is no place in a file: it is in no log either."""
    lower = arena.lower({"f": File(b"lower")})
    with arena.mount(lower) as mount:
        for flags in (os.O_RDONLY, os.O_RDWR):
            with open(os.open(mount / "f", flags), "rb", buffering=0) as file:
                assert [os.lseek(file.fileno(), 3, whence) for whence in (os.SEEK_DATA, os.SEEK_HOLE)] == [3, 5]
                for offset in (-1, -(1 << 63), 5, (1 << 63) - 1):
                    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                        with pytest.raises(OSError) as failure:
                            os.lseek(file.fileno(), offset, whence)
                        assert failure.value.errno == errno.ENXIO, (offset, whence)


def test_without_space(arena: Arena) -> None:
    """More than the filesystem has: an error, and the file is as it was."""
    with arena.mount(arena.lower({"f": File(b"lower")})) as mount, open(mount / "f", "r+b", buffering=0) as file:
        with pytest.raises(OSError) as failure:
            fallocate(file.fileno(), 0, 0, 1 << 50)
        assert failure.value.errno in (errno.ENOSPC, errno.EFBIG)
        assert os.fstat(file.fileno()).st_size == 5
        assert (mount / "f").read_bytes() == b"lower"
