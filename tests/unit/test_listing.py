"""Listing a directory: a name is left out because it is hidden, never because it could not be read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pyfuse3
import pytest
import trio

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.inode import Inode
from fuseunion.engines.fuse.pyfuse.operations import Operations
from fuseunion.engines.fuse.serving.requests import Requests
from tests.support.faults import failing
from tests.support.inprocess import InProcess, in_process

NAMES = [f"name{number:03}" for number in range(60)]


class Kernel:
    """The other end of readdir: asks until the end, with replies of a limited size."""

    def __init__(self, union: InProcess, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.operations = Operations(Requests(union.union))
        self.entries: list[tuple[str, pyfuse3.EntryAttributes]] = []
        self._room = room
        self._left = 0
        monkeypatch.setattr(pyfuse3, "readdir_reply", self._reply)

    def _reply(self, token: object, name: bytes, entry: pyfuse3.EntryAttributes, next_id: int) -> bool:
        if not self._left:
            return False
        self._left -= 1
        self._next = next_id
        self.entries.append((os.fsdecode(name), entry))
        return True

    def list(self) -> list[str]:
        """The names of the root; raises FUSEError."""
        self.entries.clear()
        self._next = 0

        async def run() -> None:
            fh = await self.operations.opendir(pyfuse3.ROOT_INODE, None)  # type: ignore[arg-type]
            try:
                before = -1
                while before != len(self.entries):
                    before = len(self.entries)
                    self._left = self._room
                    await self.operations.readdir(fh, self._next, None)  # type: ignore[arg-type]
            finally:
                await self.operations.releasedir(fh)

        trio.run(run)
        return [name for name, _ in self.entries if name not in (".", "..")]

    def forget(self, union: InProcess) -> None:
        """Forget all that was listed."""
        for name, entry in self.entries:
            if name not in (".", ".."):
                union.union.forget(entry.st_ino, 1)


@pytest.fixture
def union(tmp_path: Path) -> Iterator[InProcess]:
    lowers = [tmp_path / "top", tmp_path / "bottom"]
    for path in (*lowers, tmp_path / "upper", tmp_path / "work"):
        path.mkdir()
    for number, name in enumerate(NAMES):
        (lowers[number % 2] / name).touch()
    (tmp_path / "upper" / "upper").touch()
    with in_process(lowers, tmp_path / "upper", tmp_path / "work") as made:
        yield made


ALL = sorted([*NAMES, "upper"])


@pytest.mark.parametrize("room", [1, 7, 1000])
def test_a_listing_in_pieces(union: InProcess, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    kernel = Kernel(union, monkeypatch, room)
    assert sorted(kernel.list()) == ALL
    assert len({entry.st_ino for _, entry in kernel.entries}) == len(ALL) + 1  # `.` and `..` are the root
    kernel.forget(union)
    assert union.union.state.table.size == 1


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ENOMEM])
def test_what_cannot_be_read_ends_the_listing(union: InProcess, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Whichever call fails once: the listing fails, or goes on where it stopped and is whole; all can be forgotten."""
    kernel = Kernel(union, monkeypatch, 1000)
    number, failed = 0, 0
    while True:
        union.union.state.descriptors.close()
        answer: int | list[str]
        with failing(number, code) as fault:
            try:
                answer = sorted(kernel.list())
            except pyfuse3.FUSEError as error:
                answer = error.errno
        assert answer in (code, ALL), f"call {number}, {fault.call}"
        failed += answer == code
        kernel.forget(union)
        assert union.union.state.table.size == 1, f"call {number}, {fault.call}"
        if fault.call is None:
            break
        number += 1
    assert failed >= 3 and number > len(NAMES)


def test_what_was_sent_before_counts(union: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in the middle that cannot be read fails the request that begins with it, and no other."""
    kernel = Kernel(union, monkeypatch, 1000)
    whole = kernel.list()
    kernel.forget(union)
    real = union.union.lookup

    def lookup(directory: Directory, name: bytes) -> Inode | None:
        if os.fsdecode(name) == whole[10]:
            raise OSError(errno.EIO, "a bad disk")
        return real(directory, name)

    monkeypatch.setattr(union.union, "lookup", lookup)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        kernel.list()
    assert caught.value.errno == errno.EIO
    assert [name for name, _ in kernel.entries[2:]] == whole[:10]
    kernel.forget(union)
    assert union.union.state.table.size == 1


def test_a_malformed_object_is_listed(union: InProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One object whose marks cannot be understood answers EINVAL, and its directory is listed."""
    (tmp_path / "top" / "bad").mkdir()
    (tmp_path / "bottom" / "bad").mkdir()
    os.setxattr(tmp_path / "top" / "bad", "trusted.overlay.redirect", b"a/b")
    kernel = Kernel(union, monkeypatch, 1000)
    for _ in range(2):
        assert sorted(kernel.list()) == sorted([*ALL, "bad"])
        (entry,) = [entry for name, entry in kernel.entries if name == "bad"]
        assert entry.entry_timeout == entry.attr_timeout == 0

        async def getattr_(number: int = entry.st_ino) -> None:
            await kernel.operations.getattr(pyfuse3.InodeT(number), None)  # type: ignore[arg-type]

        with pytest.raises(pyfuse3.FUSEError) as caught:
            trio.run(getattr_)
        assert caught.value.errno == errno.EINVAL
        kernel.forget(union)
        assert union.union.state.table.size == 1


def test_a_name_that_a_layer_lists_twice(union: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads a directory in parts gets what was made anew in between once more (readdir(3))."""
    (tmp_path / "top/.wh.name001").touch()
    scan = RealDir.scan

    def twice(real: RealDir) -> Iterator[list[bytes]]:
        for names in scan(real):
            yield [*names, *names]

    monkeypatch.setattr(RealDir, "scan", twice)
    assert sorted(Kernel(union, monkeypatch, room=1000).list()) == [name for name in ALL if name != "name001"]
