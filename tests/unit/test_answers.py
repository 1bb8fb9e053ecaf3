"""Handlers of requests that are read directly, where what takes longer meets what others do meanwhile."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CoroutineType
from typing import Any

import pytest
import trio

from fuseunion.core.disk.descriptors import FLOOR, Descriptors
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.wire import layouts as wire_layouts
from fuseunion.engines.fuse.wire.answers import Answers
from fuseunion.engines.fuse.wire.layouts import DIRENT, ENTRY
from fuseunion.engines.fuse.wire.results import ToSync
from fuseunion.steps import in_one_piece
from tests.support.inprocess import InProcess, in_process


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "upper/file").write_bytes(b"content")
    return tmp_path


def _union(layers: Path) -> Any:
    return in_process([layers / "lower"], layers / "upper", layers / "work")


def _answers(inside: InProcess) -> tuple[Answers, int]:
    """The handlers, and the number of the file, which the kernel knows."""
    answers = Answers(Requests(inside.union), 1.0)
    return answers, ENTRY.unpack(answers._lookup(1, b"file"))[0]


def test_requests_are_called_what_the_protocol_calls_them(layers: Path) -> None:
    """In what `fuseunion status` and `fuseunion top` say."""
    with _union(layers) as inside:
        names = Answers(Requests(inside.union), 1.0).names()
    called = {opcode: getattr(wire_layouts, name.upper(), None) for opcode, name in names.items()}
    several = {wire_layouts.RENAME2: wire_layouts.RENAME, wire_layouts.BATCH_FORGET: wire_layouts.FORGET}
    assert called == {opcode: several.get(opcode, opcode) for opcode in names}


@pytest.mark.trio
async def test_a_descriptor_stays_open_until_its_task_runs(layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another request may close it after the answer was put off, and its number then be another file's."""
    with _union(layers) as inside:
        answers, number = _answers(inside)
        with monkeypatch.context() as none_left:
            none_left.setattr(os, "dup", _no_descriptor)
            result: Any = answers._contents.fsync(number, False)
        assert isinstance(result, CoroutineType)
        opened = answers._open_files.reading(inside.union.file(number))
        answers.close_files()
        os.fstat(opened.handle.fd)
        with trio.fail_after(5):
            assert await result == 0
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(opened.handle.fd)
        answers._forget(number, 1)


def _no_descriptor(_fd: int) -> int:
    raise OSError(errno.EMFILE, "")


def test_a_thread_that_syncs_has_a_descriptor_of_its_own(layers: Path) -> None:
    """Of a file in the upper; a lower has nothing to be written out."""
    (layers / "lower/below").touch()
    with _union(layers) as inside:
        answers, number = _answers(inside)
        below = ENTRY.unpack(answers._lookup(1, b"below"))[0]
        sync = answers._contents.fsync(number, True)
        assert isinstance(sync, ToSync)
        assert sync.data_only
        answers.close_files()
        assert os.path.samestat(os.fstat(sync.fd), (layers / "upper/file").stat())
        of_directory = answers._contents.fsyncdir(1, True)
        assert isinstance(of_directory, ToSync)
        assert os.path.samestat(os.fstat(of_directory.fd), (layers / "upper").stat())
        assert answers._contents.fsync(below, False) == 0
        for fd in (sync.fd, of_directory.fd):
            os.close(fd)
        answers.close_files()
        for each in (number, below):
            answers._forget(each, 1)


def test_a_small_file_in_memory_waits_for_no_thread() -> None:
    """Not even the first of a filesystem, of which it is not known yet."""
    with TemporaryDirectory(dir="/dev/shm") as place:
        for name in ("lower", "upper", "work"):
            (Path(place) / name).mkdir()
        (Path(place) / "upper/file").write_bytes(b"content")
        with _union(Path(place)) as inside:
            answers, number = _answers(inside)
            assert [answers._contents.read(number, 0, 4096) for _ in range(2)] == [b"content", b"content"]
            answers._forget(number, 1)


def test_a_link_that_is_made_is_answered_as_made(layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at it afterwards fails for a moment."""
    with _union(layers) as inside:
        answers, number = _answers(inside)
        real, failures = Union.stat, [OSError(errno.EIO, "no look")]

        def failing(self: Union, inode: Inode) -> tuple[os.stat_result, int]:
            if (layers / "upper/file").lstat().st_nlink == 2 and failures:
                raise failures.pop()
            return real(self, inode)

        monkeypatch.setattr(Union, "stat", failing)
        entry = answers._link(1, number, b"second")
        assert isinstance(entry, bytes)
        assert not failures, "nothing failed"
        answers._forget(number, 2)


@pytest.mark.parametrize("hiding", [False, True])
@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("lowers", [1, 2, 3, 5])
def test_plain_files_are_listed_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lowers: int, written: bool, hiding: bool
) -> None:
    layers = [tmp_path / f"lower{number}" for number in range(lowers)]
    for path in (*layers, tmp_path / "upper", tmp_path / "work"):
        path.mkdir()
    top = layers[0]
    for number in range(200):
        for layer in {number % lowers, number * 7 % lowers}:
            (layers[layer] / f"file {number}").write_bytes(b"x" * (number % 7))
    if written:
        (tmp_path / "upper/file 3").write_bytes(b"upper")
        os.mknod(tmp_path / "upper/file 4", 0o020000)
    for path in (*layers[:-1], *([tmp_path / "upper"] if written else [])):
        os.setxattr(_file(path / "marked"), "user.overlay.metacopy", b"")
        os.setxattr(_file(path / "hidden"), "user.overlay.whiteout", b"")
        if hiding:
            (path / ".wh.file 5").write_bytes(b"")
    (layers[-1] / "marked").write_bytes(b"the data")
    (layers[-1] / "hidden").write_bytes(b"x")
    (top / "link").symlink_to("nothing")
    (top / "first name").write_bytes(b"two")
    (top / "second name").hardlink_to(top / "first name")
    (top / "directory").mkdir()
    os.mkfifo(top / "fifo")
    os.mknod(top / "gone", 0o020000)

    def listed() -> tuple[list[bytes], dict[bytes, tuple[Any, ...]]]:
        with in_process(layers, tmp_path / "upper", tmp_path / "work") as inside:
            answers = Answers(Requests(inside.union), 1.0)
            answers._lookup(1, b"file 7")
            parts, position = [], 0
            while part := in_one_piece(answers._listed.entries(inside.union.root, position, 4096)):
                parts.append(part)
                position = _last_position(part)
            children = inside.union.root.children
            return parts, {name: (one.ino, one.kind, one.nlookup) for name, one in children.items()}

    plain = listed()
    monkeypatch.setattr(Union, "plain_files", lambda *_: None)
    assert plain == listed()
    assert len(plain[1]) > 200


@pytest.mark.parametrize("marked", [2, 7, 1000])
def test_plain_files_of_an_upper_are_listed_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marked: int
) -> None:
    """Copies have marks that say another number; what is known already is not looked at again."""
    for name in ("lower/copies", "upper/own", "work"):
        (tmp_path / name).mkdir(parents=True)
    for number in range(100):
        path = tmp_path / ("lower/copies" if number % marked == 0 else "upper/own") / f"file {number}"
        path.write_bytes(b"x" * (number % 3))
    (tmp_path / "upper/own/link").symlink_to("nothing")
    (tmp_path / "upper/own/first name").write_bytes(b"two")
    (tmp_path / "upper/own/second name").hardlink_to(tmp_path / "upper/own/first name")
    os.setxattr(_file(tmp_path / "upper/own/hidden"), "user.overlay.whiteout", b"")
    os.mknod(tmp_path / "upper/own/gone", 0o020000)
    (tmp_path / "upper/own/directory").mkdir()
    with _union(tmp_path) as inside:
        for number in range(0, 100, marked):
            inside.copied(f"copies/file {number}")
            inside.rename(f"copies/file {number}", f"own/file {number}")
        inside.forget()

    def listed() -> tuple[list[bytes], dict[bytes, tuple[Any, ...]]]:
        with _union(tmp_path) as inside:
            answers = Answers(Requests(inside.union), 1.0)
            number = ENTRY.unpack(answers._lookup(1, b"own"))[0]
            directory = inside.union.directory(number)
            answers._lookup(number, b"file 7")
            parts, position = [], 0
            while part := in_one_piece(answers._listed.entries(directory, position, 4096)):
                parts.append(part)
                position = _last_position(part)
            children = {
                name: (child.ino, child.kind, child.nlookup, child.place)
                for name, child in directory.children.items()
                if isinstance(child, File)
            }
            return parts, {name: (*some, place.name, place.disk_id) for name, (*some, place) in children.items()}

    plain = listed()
    assert set(plain[1]) == {*(b"file %d" % number for number in range(100)), b"link", b"first name", b"second name"}
    monkeypatch.setattr(Union, "plain_files", lambda *_: None)
    assert plain == listed()


def test_plain_files_of_more_layers_than_can_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory whose descriptor was closed for another's is not asked by that number."""
    monkeypatch.setattr(Descriptors, "capacity", property(lambda _: FLOOR))
    layers = [tmp_path / f"lower{number}" for number in range(40)]
    for number, path in enumerate(layers):
        (path / "d").mkdir(parents=True)
        (path / "d" / f"file {number}").write_bytes(b"x" * number)
        (path / "d/all").write_bytes(b"x" * number)
    (tmp_path / "upper").mkdir()
    (tmp_path / "work").mkdir()
    with in_process(layers, tmp_path / "upper", tmp_path / "work") as inside:
        answers = Answers(Requests(inside.union), 1.0)
        number = ENTRY.unpack(answers._lookup(1, b"d"))[0]
        directory = inside.union.directory(number)
        listed = in_one_piece(answers._listed.entries(directory, 0, 1 << 16))
        assert listed
        sizes = {name: inside.union.stat(child)[0].st_size for name, child in directory.children.items()}
        assert sizes == {b"all": 0, **{b"file %d" % number: number for number in range(40)}}
        answers._forget(number, 1)


def _file(path: Path) -> Path:
    path.touch()
    return path


def _last_position(entries: bytes) -> int:
    at = last = 0
    while at < len(entries):
        _, last, length, _ = DIRENT.unpack_from(entries, at + ENTRY.size)
        at += ENTRY.size + DIRENT.size + (length + 7 & ~7)
    return last
