"""The bytes of a copy-up: nothing is asked for again that a filesystem refused, holes stay holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseunion.core.copying.copy_data import Unshared, copy
from fuseunion.linux import syscalls

PAGE = 4096


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Two empty files."""
    source = os.open(tmp_path / "source", os.O_RDWR | os.O_CREAT)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield source, target
    os.close(source)
    os.close(target)


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


def test_a_part(ends: tuple[int, int]) -> None:
    """What is to be truncated is copied as far as it stays."""
    source, target = ends
    os.write(source, b"content")
    assert copy(source, target, 3, os.fstat(source), Unshared()) is False
    assert os.pread(target, 100, 0) == b"con"
