"""Attributes that the extension module remembers of files that were read (wire/native/repeated/remembered.c)."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseunion.core.disk.layer import Layer
from fuseunion.core.format.numbers import Ino
from fuseunion.core.tree.file import File
from fuseunion.core.tree.place import InLower
from fuseunion.engines.fuse.wire import layouts
from fuseunion.engines.fuse.wire.entries import remembered
from tests.support.wire_kernel import NODE, Kernel, attributes, kernel

__all__ = ["kernel"]

ASKED = (errno.EPERM, b"")
"""What the handler says."""


@pytest.fixture
def directory(kernel: Kernel, tmp_path: Path) -> Iterator[int]:
    """Where a file lies."""
    kernel.attach(layouts.GETATTR)
    kernel.answer = errno.EPERM
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "linked").write_bytes(b"content")
    (tmp_path / "link").hardlink_to(tmp_path / "linked")
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


def _read(kernel: Kernel, directory: int, name: bytes = b"file", shown: int = NODE, most: int = 100) -> object:
    st = os.stat(name, dir_fd=directory)
    return kernel.device.read_plain(directory, name, st.st_dev, st.st_ino, most, False, shown)


def _look(kernel: Kernel, node: int = NODE) -> tuple[int, bytes]:
    return kernel.ask(layouts.GETATTR, bytes(16), node)


def test_what_was_read_is_remembered(kernel: Kernel, directory: int, tmp_path: Path) -> None:
    assert _look(kernel) == ASKED
    assert _read(kernel, directory) == b"content"
    seen = attributes(os.stat(tmp_path / "file"))
    assert _look(kernel) == (0, seen)
    (tmp_path / "file").chmod(0o600)
    assert _look(kernel) == (0, seen), "it is not looked at again"
    assert _look(kernel, NODE + 1) == ASKED
    kernel.device.forget_attributes(NODE + 1)
    assert _look(kernel) == (0, seen)
    kernel.device.forget_attributes(NODE)
    assert _look(kernel) == ASKED


def test_what_was_too_long_to_be_read_is_remembered_too(kernel: Kernel, directory: int, tmp_path: Path) -> None:
    assert _read(kernel, directory, most=3) is None
    assert _look(kernel) == (0, attributes(os.stat(tmp_path / "file")))


@pytest.mark.parametrize(("name", "shown"), [(b"linked", NODE), (b"file", 0)], ids=["two links", "shown otherwise"])
def test_what_is_not_remembered(kernel: Kernel, directory: int, name: bytes, shown: int) -> None:
    assert _read(kernel, directory, name, shown) == b"content"
    assert _look(kernel) == ASKED
    assert _look(kernel, 0) == ASKED


def test_another_mount_begins_with_nothing(kernel: Kernel, directory: int) -> None:
    _read(kernel, directory)
    kernel.attach(layouts.GETATTR)
    assert _look(kernel) == ASKED


def test_one_may_take_the_place_of_another(kernel: Kernel, directory: int) -> None:
    """Never with the other's attributes."""
    for number in range(NODE, NODE + 20_000):
        _read(kernel, directory, shown=number)
    left = [number for number in range(NODE, NODE + 20_000) if _look(kernel, number)[0] == 0]
    assert 4096 < len(left) <= 8192
    for number in left:
        assert int.from_bytes(_look(kernel, number)[1][16:24], "little") == number
        kernel.device.forget_attributes(number)
    assert not [number for number in range(NODE, NODE + 20_000) if _look(kernel, number)[0] == 0]


@pytest.mark.parametrize("number", [-1, 1 << 64, "1"])
def test_what_is_no_number(kernel: Kernel, number: object) -> None:
    with pytest.raises((OverflowError, TypeError)):
        kernel.device.forget_attributes(number)


@pytest.mark.parametrize("way", ["stale", "another answer", "gone"])
def test_a_token_goes_with_the_answer(kernel: Kernel, directory: int, tmp_path: Path, way: str) -> None:
    layer = Layer(os.open(tmp_path, os.O_RDONLY), writable=False, label="lower")
    files = [File(Ino(NODE), 0o100000, InLower(layer.root, b"file", 1, 1))]
    for _ in range(2):  # the second read does not drop the token of the first
        _read(kernel, directory)
        remembered(files[0])
        assert _look(kernel)[0] == 0
    if way == "stale":
        files[0].stale()
    elif way == "another answer":
        files[0].reply = b"entry"
    else:
        files.clear()
        gc.collect()
    assert _look(kernel) == ASKED
    layer.close()
