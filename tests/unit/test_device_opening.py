"""Regular files that the extension module opens, or reads whole, in one call (wire/native/plain/opening.c)."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuseunion.engines.fuse.wire.native import device as found

device: Any = found.device


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    fd = os.open(tmp_path, os.O_PATH)
    before = len(os.listdir("/proc/self/fd"))
    yield fd
    assert len(os.listdir("/proc/self/fd")) == before, "each call closes what it does not give"
    os.close(fd)


def _place(directory: int, name: bytes) -> tuple[int, bytes, int, int]:
    st = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return directory, name, st.st_dev, st.st_ino


@pytest.mark.parametrize("waits", [False, True])
def test_a_small_file_is_read_whole(directory: int, waits: bool) -> None:
    assert device.read_plain(*_place(directory, b"file"), 8, waits, 0) == b"content"
    assert device.read_plain(*_place(directory, b"empty"), 1, waits, 0) == b""
    for most in (7, 0, -1):
        assert device.read_plain(*_place(directory, b"file"), most, waits, 0) is None, "there is more to be said"


def test_a_small_file_that_waits() -> None:
    """It is opened for whoever can wait; files of sysfs cannot be read without."""
    directory = os.open("/sys/kernel", os.O_PATH)
    try:
        fd = device.read_plain(*_place(directory, b"uevent_seqnum"), 1 << 17, True, 0)
        try:
            assert os.pread(fd, 100, 0).strip().isdigit()
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_NONBLOCK) == os.O_RDONLY
            assert not os.get_inheritable(fd)
        finally:
            os.close(fd)
        assert device.read_plain(*_place(directory, b"uevent_seqnum"), 10, True, 0) is None, "it is longer"
    finally:
        os.close(directory)


def test_a_file_that_is_longer_than_any_request(directory: int, tmp_path: Path) -> None:
    os.truncate(tmp_path / "file", 1 << 40)
    assert device.read_plain(*_place(directory, b"file"), 1 << 50, False, 0) is None


def test_a_file_is_opened_to_be_read(directory: int, tmp_path: Path) -> None:
    fd = device.open_plain(*_place(directory, b"file"))
    try:
        assert os.pread(fd, 10, 0) == b"content"
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        assert flags & (os.O_ACCMODE | os.O_NONBLOCK) == os.O_RDONLY
        assert flags & os.O_NOATIME, "it is our own"
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_what_is_not_what_was_found(directory: int) -> None:
    _, _, filesystem, number = _place(directory, b"file")
    cases = [_place(directory, name) for name in (b"link", b"directory", b"fifo")]
    cases += [
        (directory, b"missing", filesystem, number),
        (directory, b"other", filesystem, number),
        (directory, b"file", filesystem + 1, number),
        (directory, b"x" * 300, filesystem, number),
        (1 << 20, b"file", filesystem, number),
    ]
    for case in cases:
        assert device.open_plain(*case) is None, case
        assert device.read_plain(*case, 100, False, 0) is None, case


def test_nobody_waits_for_a_lease(directory: int, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR)
    asked = []
    before = signal.signal(signal.SIGIO, lambda *_: asked.append(True))
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        assert device.open_plain(*_place(directory, b"file")) is None
        assert device.read_plain(*_place(directory, b"file"), 100, False, 0) is None
        assert asked
    finally:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(fd)
        signal.signal(signal.SIGIO, before)


def test_calls_that_make_no_sense(directory: int) -> None:
    place = _place(directory, b"file")
    for arguments in ((), place[:3], (*place, 1), ("x", *place[1:]), (directory, "file", *place[2:]), (*place[:3], -1)):
        with pytest.raises((TypeError, OverflowError)):
            device.open_plain(*arguments)
    for arguments in (
        place,
        (*place, 10, True),
        (*place, "x", True, 0),
        (*place, 10, True, -1),
        (*place, 1 << 70, True, 0),
        ("x", *place[1:], 10, True, 0),
    ):
        with pytest.raises((TypeError, OverflowError)):
            device.read_plain(*arguments)
