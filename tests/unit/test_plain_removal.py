"""Removals in one call leave what those in Python leave, and what is not as it was believed to be alone."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CoroutineType
from typing import Any

import pytest

from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.wire.answers import Answers
from fuseunion.engines.fuse.wire.layouts import ENTRY, MODE
from fuseunion.engines.fuse.wire.native import device as found
from tests.support.inprocess import in_process
from tests.support.product import WITH_EXTENSION

pytestmark = pytest.mark.skipif(not WITH_EXTENSION, reason="it is the extension that does it")


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- the call ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full/below").mkdir(parents=True)
    (tmp_path / "lower").mkdir()
    (tmp_path / "lower/file").write_bytes(b"")
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


def _remove(place: int, name: bytes, *, holds: bool = True, lowers: tuple[int, ...] = (), **other: int) -> Any:
    assert found.device is not None
    st = os.stat(name, dir_fd=place, follow_symlinks=False)
    told = {"device": st.st_dev, "number": st.st_ino, "kind": stat.S_IFMT(st.st_mode), **other}
    return found.device.remove_plain(place, name, *told.values(), holds, lowers)


@pytest.mark.parametrize("name", [b"file", b"link", b"empty"])
def test_it_is_removed_and_held(place: int, tmp_path: Path, name: bytes) -> None:
    st = os.lstat(tmp_path / os.fsdecode(name))
    held = _remove(place, name)
    assert not os.path.lexists(tmp_path / os.fsdecode(name))
    assert os.path.samestat(os.fstat(held), st)
    assert not os.get_inheritable(held)
    os.close(held)


def test_it_is_removed_and_not_held(place: int, tmp_path: Path) -> None:
    before = _descriptors()
    assert _remove(place, b"file", holds=False) == -1
    assert not (tmp_path / "file").exists()
    assert _descriptors() == before


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("other", [{"device": 1}, {"number": 1}, {"kind": stat.S_IFDIR}])
def test_another_object_stays(place: int, tmp_path: Path, other: dict[str, int], holds: bool) -> None:
    before = _descriptors()
    assert _remove(place, b"file", holds=holds, **other) is None
    assert (tmp_path / "file").read_bytes() == b"content"
    assert _descriptors() == before


def test_what_stays(place: int, tmp_path: Path) -> None:
    assert found.device is not None
    lower = os.open(tmp_path / "lower", os.O_PATH)
    before = _descriptors()
    assert _remove(place, b"full") is None
    assert _remove(place, b"file", lowers=(lower,)) is None
    assert _remove(place, b"file", lowers=(place, lower)) is None
    assert _remove(place, b"link", lowers=(0x7FFFFFFF,)) is None
    assert found.device.remove_plain(place, b"none", 1, 2, 3, True, ()) is None
    assert found.device.remove_plain(place, b"none", 1, 2, 3, False, ()) is None
    assert _descriptors() == before
    held = _remove(place, b"link", lowers=(lower,))
    os.close(held)
    os.close(lower)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full", "lower"]


def test_calls_that_are_none(place: int) -> None:
    assert found.device is not None
    for arguments in (
        (place, b"file", 1, 2, 3, True),
        (place, "file", 1, 2, 3, True, ()),
        (place, b"f", 1, 2, 3, True, []),
    ):
        with pytest.raises(TypeError):
            found.device.remove_plain(*arguments)
    for wrong in (
        (place, b"file", -1, 2, 3, True, ()),
        ("x", b"file", 1, 2, 3, True, ()),
        (place, b"f", 1, 2, 3, 1, ("",)),
    ):
        with pytest.raises((TypeError, OverflowError)):
            found.device.remove_plain(*wrong)


# -- requests ----------------------------------------------------------------------------------------------------------


class Mount:
    """The handlers of a union."""

    def __init__(self, union: Any) -> None:
        self.union = union
        self.answers = Answers(Requests(union), 1e9)

    def lookup(self, name: bytes, parent: int = 1) -> int:
        number: int = ENTRY.unpack(self.answers._lookup(parent, name))[0]
        return number

    def directory(self, name: bytes, parent: int = 1) -> int:
        """A new directory."""
        number: int = ENTRY.unpack(self.answers._mkdir(parent, *OURS, 1, 0, 0o755, name))[0]
        return number

    def file(self, name: bytes, parent: int = 1) -> int:
        """A new file, which nobody has open."""
        number: int = ENTRY.unpack(self.answers._mknod(parent, *OURS, 1, 0, 0o100644, 0, name))[0]
        self.answers.close_files()
        return number


def _links(mount: Mount, number: int) -> int:
    links: int = ENTRY.unpack(mount.answers._getattr(number))[MODE + 1]
    return links


OURS = (os.geteuid(), os.getegid())


@contextmanager
def _mounted(root: Path) -> Iterator[Mount]:
    for name in ("lower", "upper", "work"):
        (root / name).mkdir(exist_ok=True)
    with in_process([root / "lower"], root / "upper", root / "work") as inside:
        yield Mount(inside.union)


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bool]]:
    """The names that the call was made for, and whether it removed them."""
    calls: list[tuple[bytes, bool]] = []
    device = found.device
    assert device is not None
    real = device.remove_plain

    def noting(*args: Any) -> Any:
        held = real(*args)
        calls.append((args[1], held is not None))
        return held

    monkeypatch.setattr(device, "remove_plain", noting)
    return calls


def test_a_file_keeps_its_data_until_it_is_forgotten(tmp_path: Path, plainly: list[Any]) -> None:
    with _mounted(tmp_path) as mount:
        directory = mount.directory(b"d")
        number = mount.file(b"f", directory)
        (tmp_path / "upper/d/f").write_bytes(b"kept")
        before = _descriptors()
        assert mount.answers._unlink(directory, b"f") == 0
        assert plainly == [(b"f", True)]
        assert not (tmp_path / "upper/d/f").exists()
        assert mount.answers._lookup(directory, b"f")[:8] == bytes(8)
        assert mount.answers._contents.read(number, 0, 100) == b"kept"
        assert _links(mount, number) == 0, "no link is left"
        mount.answers.close_files()
        assert _descriptors() == before + 1
        mount.answers._forget(number, 1)
        assert _descriptors() == before
        with pytest.raises(OSError, match="Stale"):
            mount.answers._getattr(number)


def test_a_file_that_is_open_keeps_its_descriptor(tmp_path: Path, plainly: list[Any]) -> None:
    with _mounted(tmp_path) as mount:
        number = ENTRY.unpack(mount.answers._mknod(1, *OURS, 1, 0, 0o100644, 0, b"f"))[0]
        mount.answers._contents.write(number, *OURS, 1, 0, 0, b"data")
        before = _descriptors()
        mount.answers._unlink(1, b"f")
        assert plainly == [(b"f", True)]
        assert _descriptors() == before
        mount.answers.close_files()
        assert mount.answers._contents.read(number, 0, 100) == b"data"
        mount.answers._forget(number, 1)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_was_exchanged_stays(tmp_path: Path, plainly: list[Any], kind: str) -> None:
    with _mounted(tmp_path) as mount:
        mount.file(b"x") if kind == "file" else mount.directory(b"x")
        (tmp_path / "upper/x").rename(tmp_path / "upper/other")
        if kind == "file":
            (tmp_path / "upper/x").write_bytes(b"another")
        else:
            (tmp_path / "upper/x").mkdir()
        before = _descriptors()
        with pytest.raises(OSError, match="Stale") as raised:
            (mount.answers._unlink if kind == "file" else mount.answers._rmdir)(1, b"x")
        assert raised.value.errno == errno.ESTALE
        assert plainly == [(b"x", False)]
        assert (tmp_path / "upper/x").exists()
        assert _descriptors() == before


def test_directories(tmp_path: Path, plainly: list[Any]) -> None:
    with _mounted(tmp_path) as mount:
        outer = mount.directory(b"outer")
        inner = mount.directory(b"inner", outer)
        (tmp_path / "upper/outer/inner/unknown").write_bytes(b"")
        with pytest.raises(OSError, match="not empty"):
            mount.answers._rmdir(outer, b"inner")
        (tmp_path / "upper/outer/inner/unknown").unlink()
        before = _descriptors()
        assert mount.answers._rmdir(outer, b"inner") == 0
        assert plainly == [(b"inner", False), (b"inner", True)]
        assert _links(mount, inner) == 0
        with pytest.raises(FileNotFoundError):
            mount.answers._mknod(inner, *OURS, 1, 0, 0o100644, 0, b"f")
        mount.answers._forget(inner, 1)
        assert _descriptors() <= before
        with pytest.raises(NotADirectoryError):
            mount.file(b"f", outer)
            mount.answers._rmdir(outer, b"f")
        with pytest.raises(IsADirectoryError):
            mount.answers._unlink(1, b"outer")


def test_names_that_a_lower_has(tmp_path: Path, plainly: list[Any]) -> None:
    """In a directory of which lowers are a part: what they have gets a whiteout, and what they have not gets none."""
    (tmp_path / "lower/d").mkdir(parents=True)
    for name in ("copied", "plain", "first", "two"):
        (tmp_path / "lower/d" / name).write_bytes(name.encode())
    (tmp_path / "lower/d/names").hardlink_to(tmp_path / "lower/d/two")
    (tmp_path / "upper/d").mkdir(parents=True)
    (tmp_path / "upper/d/copied").write_bytes(b"its copy")
    with _mounted(tmp_path) as mount:
        directory = mount.lookup(b"d")
        for name in (b"first", b"copied", b"plain", b"two"):
            mount.lookup(name, directory)
            mount.answers._unlink(directory, name)
            assert mount.answers._lookup(directory, name)[:8] == bytes(8)
        mount.file(b"new", directory)
        mount.answers._unlink(directory, b"new")
        mount.directory(b"newer", directory)
        mount.answers._rmdir(directory, b"newer")
        assert plainly == [(b"copied", False), (b"new", True), (b"newer", True)]
        number = mount.lookup(b"names", directory)
        assert _links(mount, number) == 1, "one of two names is left"
    whiteouts = {path.name: path.lstat() for path in (tmp_path / "upper/d").iterdir()}
    assert sorted(whiteouts) == ["copied", "first", "plain", "two"]
    assert all(stat.S_ISCHR(st.st_mode) and st.st_rdev == 0 for st in whiteouts.values())


def test_what_somebody_put_over_a_lower_name_stays(tmp_path: Path) -> None:
    (tmp_path / "lower").mkdir()
    for name in ("one", "two"):
        (tmp_path / "lower" / name).write_bytes(b"")
    with _mounted(tmp_path) as mount:
        mount.lookup(b"one")
        mount.answers._unlink(1, b"one")
        mount.lookup(b"two")
        (tmp_path / "upper/two").write_bytes(b"mine")
        with pytest.raises(OSError, match="Stale"):
            mount.answers._unlink(1, b"two")
    assert (tmp_path / "upper/two").read_bytes() == b"mine"
    assert os.listdir(tmp_path / "work/work") == []


def test_one_of_two_names(tmp_path: Path, plainly: list[Any]) -> None:
    with _mounted(tmp_path) as mount:
        number = mount.file(b"one")
        mount.answers._link(1, number, b"two")
        mount.answers._unlink(1, b"one")
        assert not plainly
        assert _links(mount, number) == 1
        mount.answers._unlink(1, b"two")
        assert plainly == [(b"two", True)]
        mount.answers._forget(number, 2)


# -- listings ----------------------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_a_listing_of_known_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what Python says."""
    device = found.device
    assert device is not None
    (tmp_path / "lower/d").mkdir(parents=True)
    (tmp_path / "lower/d/lower").write_bytes(b"x")
    (tmp_path / "upper/d").mkdir(parents=True)
    (tmp_path / "upper/d/copied").write_bytes(b"copied")
    with _mounted(tmp_path) as mount:
        directory = mount.lookup(b"d")
        numbers = [mount.file(b"f%d" % number, directory) for number in range(40)]
        mount.directory(b"below", directory)
        mount.lookup(b"copied", directory)
        mount.lookup(b"lower", directory)
        (tmp_path / "upper/d/f7").write_bytes(b"7 bytes")
        for number in numbers:
            mount.union.file(number).stale()
        packed: list[int] = []
        real = device.pack_known

        def noting(*args: Any) -> Any:
            result = real(*args)
            packed.append(result[1])
            return result

        monkeypatch.setattr(device, "pack_known", noting)
        at_once = await _ended(mount.answers._readdirplus(directory, 0, 1 << 20))
        assert sum(packed) == 41, "the new files and the copy"
        told = [mount.union.file(number).nlookup for number in numbers]
        monkeypatch.setattr(device, "pack_known", lambda *_: (b"", 0))
        assert await _ended(mount.answers._readdirplus(directory, 0, 1 << 20)) == at_once
        assert told == [2] * 40 == [mount.union.file(number).nlookup - 1 for number in numbers]


async def _ended(result: Any) -> Any:
    return await result if isinstance(result, CoroutineType) else result


def test_what_is_not_known_any_more(place: int) -> None:
    device = found.device
    assert device is not None
    st = os.stat("file", dir_fd=place)
    file = (3, b"file", 99, st.st_ino, stat.S_IFREG)
    entries, count = device.pack_known(place, st.st_dev, [file, file], 160, 100, 5)
    assert (len(entries), count) == (160, 1), "there is no room for more"
    plain, _ = device.pack_plain([(place, st.st_dev, 0)], False, [(3, b"file")], 0, 160, 100, 5)
    same = entries.replace((99).to_bytes(8, "little"), st.st_ino.to_bytes(8, "little"))
    assert same == plain
    for wrong in ((3, b"file", 99, 1, stat.S_IFREG), (3, b"file", 99, st.st_ino, stat.S_IFLNK), (3, b"none", 9, 1, 1)):
        assert device.pack_known(place, st.st_dev, [wrong, file], 4096, 100, 5) == (b"", 0)
    assert device.pack_known(place, 1, [file], 4096, 100, 5) == (b"", 0)
    assert device.pack_known(place, st.st_dev, [file], 159, 100, 5) == (b"", 0)
    assert device.pack_known(place, st.st_dev, [file], -1, 100, 5) == (b"", 0)
    assert device.pack_known(place, st.st_dev, [], 100, 100, 5) == (b"", 0)
    for malformed in ([1], [(3, b"file", 99, 1)], [(3, "file", 99, 1, 1)], [("x", b"file", 99, 1, 1)], (file,)):
        with pytest.raises(TypeError):
            device.pack_known(place, st.st_dev, malformed, 4096, 100, 5)
