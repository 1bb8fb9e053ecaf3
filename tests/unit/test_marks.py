"""Marks on disk: only those that mean something are read, and none is longer than a mark can be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseunion.core.format.xattr_names import MalformedError
from fuseunion.core.marks import marks
from tests.support.inprocess import InProcess, in_process

PREFIX = "trusted.overlay." if os.geteuid() == 0 else "user.overlay."


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    for name in ("top", "lower", "upper", "work"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def union(layers: Path) -> Iterator[InProcess]:
    with in_process([layers / "top", layers / "lower"], layers / "upper", layers / "work") as opened:
        yield opened


def test_what_means_nothing_is_not_read(layers: Path, union: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's owner decides how many attributes there are, not how much memory a lookup takes."""
    (layers / "top/d").mkdir()
    for name in ("origin", "impure", "protattr", "fuseunion.lowers", "overlay.opaque", *map(str, range(20))):
        os.setxattr(layers / "top/d", PREFIX + name, b"x")
    os.setxattr(layers / "top/d", PREFIX + "opaque", b"y")
    read: list[str] = []
    really = os.getxattr

    def getxattr(path: bytes, name: bytes, *, follow_symlinks: bool = True) -> bytes:
        read.append(os.fsdecode(name))
        return really(path, name, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "getxattr", getxattr)
    union.find("d")
    assert set(read) == {PREFIX + "opaque"}


@pytest.mark.parametrize("mark", ["opaque", "redirect", "metacopy", "fuseunion.origin", "whiteout"])
def test_what_is_too_long_is_no_mark(
    layers: Path, union: InProcess, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One object answers an error; its directory is listed, and is not empty."""
    monkeypatch.setattr(marks, "LONGEST", 1000)  # ext4 keeps less than 4,096 bytes
    (layers / "top/d").mkdir()
    (layers / "top/d/bad").touch()
    (layers / "top/d/good").write_text("good")
    os.setxattr(layers / "top/d/bad", PREFIX + mark, b"x" * 1001)
    with pytest.raises(MalformedError):
        union.find("d/bad")
    union.unlink("d/good")
    with pytest.raises(OSError, match="not empty"):
        union.rmdir("d")
