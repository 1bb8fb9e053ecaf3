"""Attributes that the extension module remembers of files that were read and of directories that were listed
(wire/native/repeated/remembered.c), and who tells it those of directories (wire/directories/listed.py)."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuseunion.core.disk.layer import Layer
from fuseunion.core.format.numbers import Ino
from fuseunion.core.ops.attributes import Change
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.place import InLower
from fuseunion.engines.fuse.wire import layouts
from fuseunion.engines.fuse.wire.answers import Answers
from fuseunion.engines.fuse.wire.entries import remembered
from fuseunion.steps import in_one_piece
from tests.support.inprocess import InProcess
from tests.support.wire_kernel import NODE, Kernel, attributes, kernel
from tests.support.wire_union import answers, union_in

__all__ = ["answers", "kernel"]

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


def _entry(number: int = NODE, size: int = 1) -> bytes:
    """A struct fuse_entry_out in which no two members are the same."""
    return layouts.ENTRY.pack(number, 2, 3, 4, 5, 6, number, size, *range(9, 23))


def test_what_python_says_is_remembered(kernel: Kernel, directory: int) -> None:
    kernel.device.note_attributes(_entry())
    assert _look(kernel) == (0, (100).to_bytes(8, "little") + bytes([5]) + bytes(7) + _entry()[40:])
    kernel.device.note_attributes(_entry(size=2))
    assert _look(kernel)[1][16:] == _entry(size=2)[40:]
    kernel.device.note_attributes(_entry(NODE + 1))
    assert _look(kernel, NODE + 1)[1][16:] == _entry(NODE + 1)[40:]
    kernel.device.forget_attributes(NODE)
    assert _look(kernel) == ASKED
    kernel.attach(layouts.GETATTR)
    assert _look(kernel, NODE + 1) == ASKED


def test_nobody_has_no_number(kernel: Kernel, directory: int) -> None:
    kernel.device.note_attributes(_entry(0))
    assert _look(kernel, 0) == ASKED


@pytest.mark.parametrize("entry", [b"", _entry()[1:], _entry() + b"\0", "entry", None])
def test_what_is_no_entry(kernel: Kernel, directory: int, entry: object) -> None:
    with pytest.raises(TypeError):
        kernel.device.note_attributes(entry)


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


# -- directories -------------------------------------------------------------------------------------------------------

MANY = 200
SMALL, LARGE = 4096, 1 << 17


@pytest.fixture
def attached(kernel: Kernel) -> Kernel:
    kernel.attach(layouts.GETATTR)
    kernel.answer = errno.EPERM
    return kernel


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[InProcess]:
    for name in ("lower/lower only/below", "lower/both", "upper/both/below", "upper/upper only/below", "work"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lower/many").mkdir()
    for number in range(MANY):
        (tmp_path / f"lower/many/{number}").touch()
    with union_in(tmp_path) as union:
        yield union


def _list(answers: Answers, directory: Directory, position: int = 0, size: int = LARGE) -> bytes:
    return in_one_piece(answers._listed.entries(directory, position, size))


def _found(inside: InProcess, path: str) -> Directory:
    directory = inside.find(path)
    assert isinstance(directory, Directory)
    return directory


def _is_remembered(kernel: Kernel, answers: Answers, directory: Directory) -> bool:
    """Whether the module says the attributes of a directory, which then are Python's."""
    found = kernel.ask(layouts.GETATTR, bytes(16), directory.ino)
    assert found == ASKED or found[1][16:] == answers._getattr(directory.ino)[40:]
    return found != ASKED


@pytest.mark.parametrize("path", ["", "lower only", "upper only", "both"])
def test_a_directory_that_was_listed(kernel: Kernel, inside: InProcess, answers: Answers, path: str) -> None:
    """What Python knew of it stays known, and is not asked for again."""
    directory = _found(inside, path)
    assert not _is_remembered(kernel, answers, directory)
    entry = answers._getattr(directory.ino)
    assert not _is_remembered(kernel, answers, directory)
    for _ in range(2):
        _list(answers, directory)
        assert _is_remembered(kernel, answers, directory)
        assert answers._getattr(directory.ino) is entry


def test_what_nobody_asked_for_is_not_remembered(kernel: Kernel, inside: InProcess, answers: Answers) -> None:
    directory = _found(inside, "lower only")
    _list(answers, directory)
    assert not _is_remembered(kernel, answers, directory)


def test_it_is_remembered_at_the_end(kernel: Kernel, inside: InProcess, answers: Answers) -> None:
    """The kernel asks when all names are read."""
    directory = _found(inside, "many")
    answers._getattr(directory.ino)
    position, found = 0, []
    while entries := _list(answers, directory, position, SMALL):
        found.append(_is_remembered(kernel, answers, directory))
        at = 0
        while at < len(entries):
            _, position, length, _ = layouts.DIRENT.unpack_from(entries, at + layouts.ENTRY.size)
            at += layouts.ENTRY.size + layouts.DIRENT.size + (length + 7 & ~7)
    assert len(found) > 2
    assert found == [False] * (len(found) - 1) + [True]


def test_another_may_have_taken_its_place(kernel: Kernel, inside: InProcess, answers: Answers) -> None:
    directory = _found(inside, "both")
    answers._getattr(directory.ino)
    _list(answers, directory)
    for number in range(1 << 20, (1 << 20) + 50_000):
        kernel.device.note_attributes(_entry(number))
    assert not _is_remembered(kernel, answers, directory)
    _list(answers, directory)
    assert _is_remembered(kernel, answers, directory)


CHANGES: dict[str, Callable[[InProcess], object]] = {
    "a file is made": lambda inside: inside.create("both/new"),
    "a directory is made": lambda inside: inside.mkdir("both/new"),
    "a name goes": lambda inside: inside.rmdir("both/below"),
    "its mode": lambda inside: inside.setattr("both", Change(mode=0o700)),
    "it is moved": lambda inside: inside.rename("upper only", "both/moved"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_told(
    kernel: Kernel, inside: InProcess, answers: Answers, change: Callable[[InProcess], object]
) -> None:
    directory = _found(inside, "both")
    before = answers._getattr(directory.ino)
    _list(answers, directory)
    change(inside)
    assert not _is_remembered(kernel, answers, directory)
    assert answers._getattr(directory.ino) != before
    _list(answers, directory)
    assert _is_remembered(kernel, answers, directory)


def test_what_is_not_to_be_remembered_by_the_kernel(kernel: Kernel, inside: InProcess, answers: Answers) -> None:
    """While a lower is being added (asking/sockets/adding.py)."""
    directory = _found(inside, "both")
    answers._getattr(directory.ino)
    answers._requests.renewed = set()
    _list(answers, directory)
    assert not _is_remembered(kernel, answers, directory)
