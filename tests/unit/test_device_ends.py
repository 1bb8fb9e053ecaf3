"""What the extension module says of the ends of listings (wire/native/repeated/ends.c), and who tells it of them
(wire/directories/listed.py)."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseunion.core.tree.directory import Directory
from fuseunion.engines.fuse.wire import layouts
from fuseunion.engines.fuse.wire.answers import Answers
from fuseunion.engines.fuse.wire.directories import listed
from fuseunion.steps import in_one_piece
from tests.support.inprocess import InProcess
from tests.support.wire_kernel import NODE, Kernel, kernel
from tests.support.wire_union import answers, union_in

__all__ = ["answers", "kernel"]

ASKED = (errno.EPERM, b"")
"""What the handler says."""

END = (0, b"")
LAST = 1 << 40
SMALL, LARGE = 4096, 1 << 17


def _ask(kernel: Kernel, position: int, node: int = NODE) -> tuple[int, bytes]:
    return kernel.ask(layouts.READDIRPLUS, struct.pack("=QQIIQII", 0, position, SMALL, 0, 0, 0, 0), node)


@pytest.fixture
def attached(kernel: Kernel) -> Kernel:
    kernel.attach(layouts.READDIRPLUS)
    kernel.answer = errno.EPERM
    return kernel


def test_an_end_is_said_once(attached: Kernel) -> None:
    assert _ask(attached, LAST) == ASKED
    attached.device.note_end(NODE, LAST)
    attached.calls.clear()
    assert _ask(attached, LAST) == END
    assert not attached.calls
    assert _ask(attached, LAST) == ASKED


@pytest.mark.parametrize("position", [1, 2, LAST - 1, LAST + 1, (1 << 64) - 1])
def test_another_position_is_no_end(attached: Kernel, position: int) -> None:
    attached.device.note_end(NODE, LAST)
    assert _ask(attached, position) == ASKED
    assert _ask(attached, LAST, NODE + 1) == ASKED
    assert _ask(attached, LAST) == END


def test_a_listing_that_begins_has_another_end(attached: Kernel) -> None:
    """A name may have come to where the directory ended."""
    attached.device.note_end(NODE, LAST)
    assert _ask(attached, 0, NODE + 1) == ASKED
    assert _ask(attached, 0) == ASKED
    assert _ask(attached, LAST) == ASKED


@pytest.mark.parametrize("position", [0, LAST])
def test_the_beginning_is_no_end(attached: Kernel, position: int) -> None:
    attached.device.note_end(NODE, position)
    assert _ask(attached, 0) == ASKED


def test_what_the_kernel_forgets_is_forgotten(attached: Kernel) -> None:
    """Another may get the number."""
    attached.device.note_end(NODE, LAST)
    attached.send(layouts.FORGET, struct.pack("=Q", 1))
    attached.serve()
    assert _ask(attached, LAST) == ASKED


def test_another_mount_begins_with_nothing(attached: Kernel) -> None:
    attached.device.note_end(NODE, LAST)
    attached.attach(layouts.READDIRPLUS)
    assert _ask(attached, LAST) == ASKED


def test_a_request_that_is_too_short(attached: Kernel) -> None:
    attached.device.note_end(NODE, LAST)
    assert attached.ask(layouts.READDIRPLUS, bytes(39)) == (errno.EIO, b"")


def test_one_may_take_the_place_of_another(attached: Kernel) -> None:
    numbers = range(NODE, NODE + 1000)
    for number in numbers:
        attached.device.note_end(number, LAST)
    assert 32 < sum(_ask(attached, LAST, number) == END for number in numbers) <= 64


@pytest.mark.parametrize("arguments", [(), (1,), (1, 2, 3), (-1, 2), (1, -2), (1 << 64, 1), ("1", 2), (1, None)])
def test_what_is_no_end(attached: Kernel, arguments: tuple[object, ...]) -> None:
    with pytest.raises((OverflowError, TypeError)):
        attached.device.note_end(*arguments)


# -- who tells the module ----------------------------------------------------------------------------------------------

NAMES = [f"name {number}" for number in range(100)]


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[InProcess]:
    for name in ("lower/many", "lower/few/below", "lower/empty", "upper/mixed", "lower/mixed/below", "work"):
        (tmp_path / name).mkdir(parents=True)
    for name in NAMES:
        (tmp_path / "lower/many" / name).touch()
    for name in ("lower/few/a", "lower/few/b", "lower/mixed/a", "lower/mixed/b", "upper/mixed/c"):
        (tmp_path / name).touch()
    for name in ("a", "b"):
        os.symlink("x", tmp_path / "upper/mixed" / name)
    with union_in(tmp_path) as union:
        yield union


def _listed(answers: Answers, directory: object, position: int, size: int = LARGE) -> list[tuple[bytes, int]]:
    """Names, and the positions behind them."""
    assert isinstance(directory, Directory)
    packed = in_one_piece(answers._listed.entries(directory, position, size))
    names = []
    at = 0
    while at < len(packed):
        at += layouts.ENTRY.size
        _, behind, length, _ = layouts.DIRENT.unpack_from(packed, at)
        at += layouts.DIRENT.size
        names.append((packed[at : at + length], behind))
        at += length + 7 & ~7
    return names


@pytest.mark.parametrize("path", ["few", "empty", "mixed", "many"])
def test_the_end_of_what_is_listed_at_once_is_told(
    kernel: Kernel, inside: InProcess, answers: Answers, path: str
) -> None:
    directory = inside.find(path)
    for _ in range(2):
        *_, (_, end) = _listed(answers, directory, 0)
        assert _listed(answers, directory, end) == []
        assert _ask(kernel, end, directory.ino) == END


def test_a_name_that_does_not_show_is_not_the_end(kernel: Kernel, inside: InProcess, answers: Answers) -> None:
    """The kernel goes on behind the last one that it got."""
    directory = inside.find("few")
    names = [name for name, _ in _listed(answers, directory, 0) if name not in (b".", b"..")]
    for left in (2, 1, 0):
        (inside.rmdir if names[left] == b"below" else inside.unlink)("few/" + os.fsdecode(names[left]))
        found = _listed(answers, directory, 0)
        assert len(found) == left + 2
        assert _ask(kernel, found[-1][1], directory.ino) == END


def test_what_is_listed_in_parts_has_no_end_that_is_told(kernel: Kernel, inside: InProcess, answers: Answers) -> None:
    directory = inside.find("many")
    found: list[tuple[bytes, int]] = []
    while part := _listed(answers, directory, found[-1][1] if found else 0, SMALL):
        found += part
        assert _ask(kernel, found[-1][1], directory.ino) == ASKED
    assert sorted(name for name, _ in found) == sorted([b".", b"..", *map(os.fsencode, NAMES)])


def test_who_compares_asks_always(
    kernel: Kernel, inside: InProcess, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listed, "compares", True)
    directory = inside.find("few")
    *_, (_, end) = _listed(answers, directory, 0)
    assert _ask(kernel, end, directory.ino) == ASKED
