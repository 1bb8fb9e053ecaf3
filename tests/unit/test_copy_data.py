"""The bytes of a copy-up: nothing is asked for again that a filesystem refused, holes stay holes."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseunion.core.copying.copy_data import Unshared, copy
from fuseunion.linux import syscalls

PAGE = 4096


@pytest.fixture(params=["disk", "memory"])
def ends(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Two empty files."""
    where = tmp_path if request.param == "disk" else "/dev/shm"
    with tempfile.TemporaryFile(dir=where) as source, tempfile.TemporaryFile(dir=where) as target:
        assert syscalls.is_in_memory(source.fileno()) == (request.param == "memory")
        yield source.fileno(), target.fileno()


@pytest.mark.parametrize(
    ("code", "attempts"), [(errno.EOPNOTSUPP, 1), (errno.EXDEV, 1), (errno.ENOTTY, 1), (errno.EINVAL, 2)]
)
def test_who_cannot_share_is_asked_once(
    ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch, code: int, attempts: int
) -> None:
    """EINVAL may be about the one file."""
    source, target = ends
    os.write(source, b"content")
    asked = []

    def refuse(*descriptors: int) -> None:
        asked.append(descriptors)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(syscalls, "ficlone", refuse)
    unshared = Unshared()
    for _ in range(2):
        assert copy(source, target, 7, os.fstat(source), unshared) is False
        assert os.pread(target, 100, 0) == b"content"
    assert len(asked) == attempts


@pytest.mark.parametrize("size", [1, PAGE, 3 * PAGE, 5 * PAGE + 7, 40 * PAGE])
@pytest.mark.parametrize("written", [(), (0,), (1,), (2,), (0, 2)])
def test_holes_stay_holes(
    ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch, size: int, written: tuple[int, ...]
) -> None:
    def refuse(*descriptors: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "cannot")

    monkeypatch.setattr(syscalls, "ficlone", refuse)
    source, target = ends
    for page in written:
        os.pwrite(source, os.urandom(PAGE), page * PAGE)
    os.truncate(source, size)
    st = os.fstat(source)
    copy(source, target, size, st, Unshared())
    assert os.pread(target, size + 1, 0) == os.pread(source, size + 1, 0)
    copied = os.fstat(target)
    assert (copied.st_size, copied.st_blocks) == (size, st.st_blocks)


@pytest.mark.parametrize("holes", [False, True])
def test_in_memory_holes_are_looked_for_where_there_are_some(
    ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch, *, holes: bool
) -> None:
    """Pages are looked at one by one, which takes a twentieth of what copying them does."""
    source, target = ends
    os.pwrite(source, os.urandom(1 << 20), 1 << 20 if holes else 0)
    asked = []
    lseek = os.lseek
    monkeypatch.setattr(os, "lseek", lambda fd, *where: asked.append(fd) or lseek(fd, *where))
    st = os.fstat(source)
    copy(source, target, st.st_size, st, Unshared())
    assert os.pread(target, 3 << 20, 0) == os.pread(source, 3 << 20, 0)
    if syscalls.is_in_memory(source):
        assert bool(asked) == holes


def test_a_part(ends: tuple[int, int]) -> None:
    """What is to be truncated is copied as far as it stays."""
    source, target = ends
    os.write(source, b"content")
    assert copy(source, target, 3, os.fstat(source), Unshared()) is False
    assert os.pread(target, 100, 0) == b"con"
