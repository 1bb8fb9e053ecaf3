"""Directories that the extension module looks at and makes files in by itself (wire/native/repeated/directories.c)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseunion.engines.fuse.wire import layouts
from tests.support.wire_kernel import ABSENT, NODE, Kernel, attributes, kernel

__all__ = ["kernel"]


@pytest.fixture
def layers(kernel: Kernel, tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Two directories, shared as one; what the handler says is an error."""
    kernel.attach(layouts.LOOKUP, layouts.GETATTR, layouts.MKNOD, layouts.MKDIR)
    kernel.answer = errno.EPERM
    fds = []
    for name, below in (("upper", "new"), ("lower", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / below).write_bytes(b"")
        fds.append(os.open(tmp_path / name, os.O_PATH))
    kernel.device.share_directory(NODE, tuple(fds), kernel.device.NAMES)
    yield fds[0], fds[1]
    for fd in fds:
        os.close(fd)
    kernel.device.unshare_directories()


def test_names_that_are_nowhere(kernel: Kernel, layers: tuple[int, int], tmp_path: Path) -> None:
    assert kernel.ask(layouts.LOOKUP, b"none\0") == (0, ABSENT)
    (tmp_path / "upper/none").symlink_to("nothing")
    for name in (b"none", b"new", b"old", b".wh.none", b"n" * 256, b"new/none"):
        assert kernel.ask(layouts.LOOKUP, name + b"\0") == (errno.EPERM, b""), name
    assert kernel.ask(layouts.LOOKUP, b"unterminated") == (errno.EIO, b"")
    assert kernel.ask(layouts.LOOKUP, b"none\0", NODE + 1) == (errno.EPERM, b"")


@pytest.mark.parametrize("way", ["forgotten", "unshared", "alone", "another in its place"])
def test_a_directory_is_shared_until(kernel: Kernel, layers: tuple[int, int], way: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    if way == "forgotten":
        kernel.send(layouts.FORGET, struct.pack("=Q", 1))
        kernel.serve()
    elif way == "unshared":
        kernel.device.unshare_directories()
    elif way == "alone":
        kernel.device.unshare_directory(NODE + 1)
        assert kernel.ask(layouts.LOOKUP, b"none\0") == (0, ABSENT), "another one"
        kernel.device.unshare_directory(NODE)
    else:
        for number in range(1000, 1200):
            kernel.device.share_directory(number, layers, 0)
        kernel.device.unshare_directories()
    assert kernel.ask(layouts.LOOKUP, b"none\0") == (errno.EPERM, b"")
    assert len(os.listdir("/proc/self/fd")) == before - 2, "the descriptors are its own"


def test_what_is_no_directory_to_share(kernel: Kernel, layers: tuple[int, int]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for fds, error in (
        ((), ValueError),
        (layers * 2, ValueError),
        ((layers[0], 1 << 20), OSError),
        (("x",), TypeError),
    ):
        with pytest.raises(error):
            kernel.device.share_directory(NODE + 1, fds, 0)
    assert len(os.listdir("/proc/self/fd")) == before


# -- attributes --------------------------------------------------------------------------------------------------------


def test_what_is_shown_of_a_directory(kernel: Kernel, layers: tuple[int, int], tmp_path: Path) -> None:
    assert kernel.ask(layouts.GETATTR, bytes(16)) == (errno.EPERM, b""), "it is not shared for that"
    kernel.device.share_directory(NODE, layers, kernel.device.SHOWN)
    assert kernel.ask(layouts.GETATTR, bytes(16)) == (0, attributes(os.stat(tmp_path / "upper")))
    (tmp_path / "upper/more").mkdir()
    assert kernel.ask(layouts.GETATTR, bytes(16)) == (0, attributes(os.stat(tmp_path / "upper")))
    assert kernel.ask(layouts.GETATTR, bytes(16), NODE + 1) == (errno.EPERM, b"")


def test_a_directory_that_shows_one_link(kernel: Kernel, layers: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "upper/more").mkdir()
    kernel.device.share_directory(NODE, layers, kernel.device.SHOWN | kernel.device.ONE_LINK)
    st = os.stat(tmp_path / "upper")
    assert st.st_nlink == 3
    assert kernel.ask(layouts.GETATTR, bytes(16)) == (0, attributes(st, nlink=1))


def test_comparing_what_is_shown_of_a_directory(kernel: Kernel, layers: tuple[int, int], tmp_path: Path) -> None:
    """Python need not know of each time of change."""
    kernel.attach(layouts.GETATTR, compares=True)
    kernel.device.share_directory(NODE, layers, kernel.device.SHOWN)
    kernel.answer = bytes(40) + attributes(os.stat(tmp_path / "upper"))[16:]
    os.chmod(tmp_path / "upper", stat.S_IMODE(os.stat(tmp_path / "upper").st_mode))
    assert kernel.ask(layouts.GETATTR, bytes(16))[0] == 0
    assert not kernel.errors
    os.utime(tmp_path / "upper", (0, 0))
    kernel.ask(layouts.GETATTR, bytes(16))
    assert [type(error) for error in kernel.errors] == [AssertionError]


def test_a_directory_that_others_have_names_in(kernel: Kernel, layers: tuple[int, int], tmp_path: Path) -> None:
    device = kernel.device
    device.share_directory(NODE, layers[:1], device.SHOWN | device.MADE | device.DIRECTORIES)
    assert kernel.ask(layouts.LOOKUP, b"none\0") == (errno.EPERM, b"")
    assert _make(kernel, b"made") == (errno.EPERM, b"")
    assert _mkdir(kernel, b"made") == (errno.EPERM, b"")
    assert kernel.ask(layouts.GETATTR, bytes(16)) == (0, attributes(os.stat(tmp_path / "upper")))


def test_a_directory_that_was_removed(kernel: Kernel, tmp_path: Path) -> None:
    kernel.attach(layouts.GETATTR)
    kernel.answer = errno.EPERM
    (tmp_path / "gone").mkdir()
    fd = os.open(tmp_path / "gone", os.O_PATH)
    kernel.device.share_directory(NODE, (fd,), kernel.device.SHOWN | kernel.device.ONE_LINK)
    (tmp_path / "gone").rmdir()
    assert kernel.ask(layouts.GETATTR, bytes(16)) == (errno.EPERM, b"")
    os.close(fd)


# -- files that are made -----------------------------------------------------------------------------------------------

OURS = (os.geteuid(), os.getegid())


@pytest.fixture
def workshop(kernel: Kernel, layers: tuple[int, int]) -> tuple[int, int]:
    """The two, where files are made."""
    kernel.device.share_directory(NODE, layers, kernel.device.NAMES | kernel.device.MADE)
    return layers


def _make(
    kernel: Kernel, name: bytes, mode: int = 0o100640, umask: int = 0o77, ids: tuple[int, int] = OURS
) -> tuple[int, bytes]:
    return kernel.ask(layouts.MKNOD, struct.pack("=IIII", mode, 0, umask, 0) + name + b"\0", ids=ids)


def test_a_file_is_made(kernel: Kernel, workshop: tuple[int, int], tmp_path: Path) -> None:
    error, entry = _make(kernel, b"made")
    st = os.stat(tmp_path / "upper/made")
    ((parent, name, fd, device, number),) = kernel.made
    assert (parent, name, device, number) == (NODE, b"made", st.st_dev, st.st_ino)
    assert os.path.samestat(os.fstat(fd), st)
    os.write(fd, b"it is open for both")
    assert os.pread(fd, 5, 0) == b"it is"
    assert fcntl.fcntl(fd, fcntl.F_GETFD) == fcntl.FD_CLOEXEC
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NOATIME
    os.close(fd)
    assert stat.S_IMODE(st.st_mode) == 0o640, "the kernel applied the umask"
    assert error == 0
    assert layouts.ENTRY.unpack(entry)[:7] == (78, 0, 100, 100, 5, 5, 78)
    assert entry[40:] == attributes(st, number=78)[16:]
    assert not kernel.calls


def test_the_umask_that_the_kernel_has_not_applied(kernel: Kernel, layers: tuple[int, int], tmp_path: Path) -> None:
    kernel.device.share_directory(NODE, layers, kernel.device.NAMES | kernel.device.MADE | kernel.device.UMASK)
    before = os.umask(0o11)
    try:
        assert _make(kernel, b"made", 0o100777, 0o27)[0] == 0
        assert os.umask(0o11) == 0o11
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "upper/made").st_mode) == 0o750
    os.close(kernel.made[0][2])


@pytest.mark.parametrize(
    ("name", "mode", "ids"),
    [
        (b"new", 0o100640, OURS),
        (b"old", 0o100640, OURS),
        (b".wh.none", 0o100640, OURS),
        (b"n" * 256, 0o100640, OURS),
        (b"../outside", 0o100640, OURS),
        (b"made", 0o104640, OURS),
        (b"made", 0o102640, OURS),
        (b"made", 0o10640, OURS),
        (b"made", 0o20640, OURS),
        (b"made", 0o100640, (OURS[0] + 1, OURS[1])),
        (b"made", 0o100640, (OURS[0], OURS[1] + 1)),
    ],
)
def test_what_python_makes(
    kernel: Kernel, workshop: tuple[int, int], tmp_path: Path, name: bytes, mode: int, ids: tuple[int, int]
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert _make(kernel, name, mode, ids=ids) == (errno.EPERM, b"")
    assert [call[0] for call in kernel.calls] == [layouts.MKNOD]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["lower", "new", "old", "upper"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_python_makes_of_a_whiteout(kernel: Kernel, workshop: tuple[int, int], tmp_path: Path) -> None:
    """Whatever lies there is not looked at more closely."""
    (tmp_path / "lower/hidden").mkdir()
    (tmp_path / "lower/hidden").rmdir()
    os.mkfifo(tmp_path / "upper/hidden")
    assert _make(kernel, b"hidden") == (errno.EPERM, b"")
    assert not kernel.made


def test_where_no_file_is_made(kernel: Kernel, layers: tuple[int, int]) -> None:
    kernel.device.share_directory(NODE, layers, kernel.device.SHOWN)
    assert _make(kernel, b"made") == (errno.EPERM, b"")
    assert kernel.ask(layouts.MKNOD, bytes(8)) == (errno.EIO, b"")


def test_what_cannot_be_taken_over(kernel: Kernel, workshop: tuple[int, int]) -> None:
    """Python has taken it away; who asked is told why."""
    kernel.number = OSError(errno.ENFILE, "no descriptor left")
    assert _make(kernel, b"made") == (errno.ENFILE, b"")
    os.close(kernel.made[0][2])
    assert not kernel.calls


def test_what_was_changed_is_told_first(kernel: Kernel, workshop: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    fd = os.open(tmp_path / "file", os.O_RDWR)
    kernel.attach(layouts.WRITE, layouts.MKNOD)
    kernel.device.share(NODE + 1, fd, kernel.device.WRITES)
    kernel.send(layouts.WRITE, struct.pack("=QQIIQII", 0, 0, 3, 0, 0, 0, 0) + b"abc", NODE + 1)
    kernel.send(layouts.MKNOD, struct.pack("=IIII", 0o100644, 0, 0, 0) + b"made\0", ids=OURS)
    told: list[int] = []
    kernel.changed = told
    kernel.number = 79
    take_over = kernel.take_over

    def check(*args: object) -> int:
        assert told == [NODE + 1]
        return int(take_over(*args))

    kernel.take_over = check  # type: ignore[method-assign]
    kernel.attach(layouts.WRITE, layouts.MKNOD)
    kernel.device.serve(2, 0, 0)
    assert len(kernel.made) == 1
    os.close(kernel.made[0][2])
    kernel.device.unshare(NODE + 1)
    os.close(fd)


# -- directories that are made -----------------------------------------------------------------------------------------


def _mkdir(
    kernel: Kernel, name: bytes, mode: int = 0o750, umask: int = 0o77, ids: tuple[int, int] = OURS
) -> tuple[int, bytes]:
    return kernel.ask(layouts.MKDIR, struct.pack("=II", mode, umask) + name + b"\0", ids=ids)


def test_a_directory_is_made(kernel: Kernel, layers: tuple[int, int], tmp_path: Path) -> None:
    kernel.device.share_directory(NODE, layers, kernel.device.NAMES | kernel.device.DIRECTORIES)
    before = len(os.listdir("/proc/self/fd"))
    error, entry = _mkdir(kernel, b"made")
    st = os.stat(tmp_path / "upper/made")
    assert kernel.made == [(NODE, b"made", -1, st.st_dev, st.st_ino)]
    assert stat.S_IMODE(st.st_mode) == 0o750, "the kernel applied the umask"
    assert (error, layouts.ENTRY.unpack(entry)[:7]) == (0, (78, 0, 100, 100, 5, 5, 78))
    assert entry[40:] == attributes(st, number=78)[16:]
    assert len(os.listdir("/proc/self/fd")) == before
    kernel.device.share_directory(NODE, layers, kernel.device.NAMES | kernel.device.DIRECTORIES | kernel.device.UMASK)
    assert _mkdir(kernel, b"other", 0o1777, 0o27)[0] == 0
    assert stat.S_IMODE(os.stat(tmp_path / "upper/other").st_mode) == 0o1750
    assert not kernel.calls


@pytest.mark.parametrize(
    ("name", "mode", "ids"),
    [
        (b"new", 0o750, OURS),
        (b"old", 0o750, OURS),
        (b".wh.none", 0o750, OURS),
        (b"n" * 256, 0o750, OURS),
        (b"../outside", 0o750, OURS),
        (b"made", 0o2750, OURS),
        (b"made", 0o4750, OURS),
        (b"made", 0o750, (OURS[0] + 1, OURS[1])),
        (b"made", 0o750, (OURS[0], OURS[1] + 1)),
    ],
)
def test_what_directory_python_makes(
    kernel: Kernel, layers: tuple[int, int], tmp_path: Path, name: bytes, mode: int, ids: tuple[int, int]
) -> None:
    kernel.device.share_directory(NODE, layers, kernel.device.NAMES | kernel.device.DIRECTORIES)
    assert _mkdir(kernel, name, mode, ids=ids) == (errno.EPERM, b"")
    assert [call[0] for call in kernel.calls] == [layouts.MKDIR]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["lower", "new", "old", "upper"]


def test_where_no_directory_is_made(kernel: Kernel, workshop: tuple[int, int]) -> None:
    assert _mkdir(kernel, b"made") == (errno.EPERM, b"")
    assert kernel.ask(layouts.MKDIR, bytes(7)) == (errno.EIO, b"")
    kernel.device.share_directory(NODE, workshop, kernel.device.DIRECTORIES)
    assert kernel.ask(layouts.MKDIR, bytes(7)) == (errno.EIO, b"")
    assert kernel.ask(layouts.MKDIR, bytes(8) + b"no end", ids=OURS) == (errno.EIO, b"")
    assert not kernel.made
