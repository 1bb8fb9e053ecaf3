"""Simple copy-ups that have to be put on disk: nobody sees one before, and each leaves what the others leave."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from fuseunion.core.marks import origin_mark
from fuseunion.core.ops.attributes import Change
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.union import Union
from fuseunion.engines.fuse.serving import copy_ups
from fuseunion.engines.fuse.serving.copy_ups import CopyUps
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.serving.waiting.reader import Reader
from fuseunion.engines.fuse.serving.waiting.workers import Workers
from fuseunion.linux import syscalls
from tests.support.inprocess import InProcess, in_process
from tests.support.product import WITH_EXTENSION

pytestmark = [
    pytest.mark.trio,
    pytest.mark.skipif(not WITH_EXTENSION, reason="they need the extension"),
]

NOW = 1_700_000_000_123_456_789

CHANGES = {
    "none": None,
    "mode": Change(mode=0o100604),
    "times": Change(atime_ns=NOW, mtime_ns=NOW + 5),
    "size": Change(size=3),
    "after 2262": Change(atime_ns=(1 << 63) + 5, mtime_ns=1 << 63),
}

DATA = {"small": b"content", "empty": b"", "full": bytes(range(256)) * 256, "large": bytes(range(256)) * 257}


class Disk:
    """Takes what is put on disk, and looks around before it says that it is there.

    Attributes:
        asked: how many files there were at a time.
        meanwhile: what others do before it is there.
        error: what it says then; 0 if it is there.
    """

    def __init__(self, work: Path) -> None:
        self.asked: list[int] = []
        self.meanwhile: Callable[[], Awaitable[None] | None] = lambda: None
        self.error = 0
        self._work = work

    async def put(self, fds: tuple[int, ...]) -> None:
        """As Workers.syncing."""
        self.asked.append(len(fds))
        inside = {(st.st_dev, st.st_ino) for st in (path.stat() for path in (self._work / "work").iterdir())}
        assert {(st.st_dev, st.st_ino) for st in map(os.fstat, fds)} <= inside, "nobody sees them"
        await trio.lowlevel.checkpoint()
        waited = self.meanwhile()
        if waited is not None:
            await waited
        if self.error:
            raise OSError(self.error, os.strerror(self.error))


class Place:
    """A union on something that is a disk for it, and the copy-ups of a mount of it."""

    def __init__(self, inside: InProcess, disk: Disk) -> None:
        workers = Workers()
        workers.syncing = disk.put
        self.inside = inside
        self.disk = disk
        self.workers = workers
        self.copy_ups = CopyUps(inside.union, workers, Reader(workers))

    @property
    def union(self) -> Union:
        return self.inside.union

    def file(self, path: str) -> File:
        found = self.inside.find(path)
        assert isinstance(found, File)
        return found

    def directory(self, path: str) -> Directory:
        found = self.inside.find(path)
        assert isinstance(found, Directory)
        return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Whose files cannot share blocks, which is known, and lie in a directory that is in the upper already."""
    monkeypatch.setattr(syscalls, "is_in_memory", lambda fd: False)
    for name in ("lower/d", "upper/d", "work"):
        (tmp_path / name).mkdir(parents=True)
    for number, (name, data) in enumerate(DATA.items()):
        (tmp_path / "lower/d" / name).write_bytes(data)
        os.utime(tmp_path / "lower/d" / name, ns=(NOW + number, NOW - number))
    os.utime(tmp_path / "upper/d", ns=(NOW, NOW + 1))
    with in_process([tmp_path / "lower"], tmp_path / "upper", tmp_path / "work") as inside:
        inside.union.state.writable().unshared.learn((tmp_path / "lower").stat().st_dev, errno.EOPNOTSUPP)
        made = Place(inside, Disk(tmp_path / "work"))
        (tmp_path / "lower/gone").touch()
        inside.union.unlink(inside.union.root, b"gone")  # from now on one lies in work, and has a descriptor
        taken, there = inside.union.state.descriptors._others, set(os.listdir(tmp_path / "work/work"))
        yield made
        assert set(os.listdir(tmp_path / "work/work")) <= there
        assert not made.copy_ups._under_way
        assert made.workers.at_rest
        inside.forget()
        assert inside.union.state.descriptors._others == taken


def _described(path: Path) -> tuple[object, ...]:
    st = path.stat()
    marks = {name: os.getxattr(path, name)[9:] for name in os.listxattr(path)}
    times = st.st_atime_ns, min(st.st_mtime_ns, NOW + 10)  # a truncation is now
    return st.st_mode, st.st_nlink, st.st_size, times, path.read_bytes(), marks


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("change", CHANGES)
async def test_the_same_upper(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, name: str
) -> None:
    """As without the extension."""
    assert await place.copy_ups.done(place.file(f"d/{name}"), CHANGES[change]) is True
    assert place.disk.asked == ([1] if name in ("small", "full") and change not in ("size", "after 2262") else [])
    assert (tmp_path / "upper/d").stat().st_mtime_ns == NOW + 1
    described = _described(tmp_path / "upper/d" / name)
    (tmp_path / "upper/d" / name).unlink()
    monkeypatch.setattr(copy_ups, "device", None)
    with in_process([tmp_path / "lower"], tmp_path / "upper", tmp_path / "work") as inside:
        again = Place(inside, place.disk)
        assert await again.copy_ups.done(again.file(f"d/{name}"), CHANGES[change]) is True
        inside.forget()
    assert _described(tmp_path / "upper/d" / name) == described


async def test_who_comes_meanwhile_waits(place: Place) -> None:
    """And finds the change still to be made."""
    file = place.file("d/small")
    results = []

    async def change(mode: int) -> None:
        results.append(await place.copy_ups.done(file, Change(mode=mode)))

    async with trio.open_nursery() as nursery:
        for mode in (0o600, 0o640, 0o644):
            nursery.start_soon(change, mode)
    assert sorted(results) == [False, False, True]
    assert place.disk.asked == [1]


async def test_it_is_deleted_meanwhile(place: Place, tmp_path: Path) -> None:
    """It stays deleted; who has it open reads the copy."""
    file = place.file("d/small")
    handles = []

    def opened_and_deleted() -> None:
        handles.append(place.union.open(file, os.O_RDONLY))
        place.union.unlink(place.directory("d"), b"small")

    place.disk.meanwhile = opened_and_deleted
    assert await place.copy_ups.done(file) is True
    (handle,) = handles
    assert not (tmp_path / "upper/d/small").is_file()
    with pytest.raises(FileNotFoundError):
        place.file("d/small")
    assert os.pread(handle.fd, 10, 0) == b"content"
    place.union.release_file(handle)


async def test_it_is_opened_meanwhile(place: Place, tmp_path: Path) -> None:
    """Who opened it reads what is written later."""
    file = place.file("d/small")
    handles = []

    def opened() -> None:
        handles.append(place.union.open(file, os.O_RDONLY))

    place.disk.meanwhile = opened
    assert await place.copy_ups.done(file) is True
    (tmp_path / "upper/d/small").write_bytes(b"another")
    assert os.pread(handles[0].fd, 10, 0) == b"another"
    place.union.release_file(handles[0])


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("exchanged", ["file", "directory"])
async def test_the_lower_changes_meanwhile(place: Place, tmp_path: Path, exchanged: str, opened: bool) -> None:
    """What lies there now is of no account: the copy is finished."""
    file = place.file("d/small")
    handles = []

    def exchange() -> None:
        if opened:
            handles.append(place.union.open(file, os.O_RDONLY))
        lower = tmp_path / "lower/d"
        if exchanged == "directory":
            lower.rename(tmp_path / "lower/moved")
            lower.mkdir()
        (tmp_path / "other").write_bytes(b"another")
        (tmp_path / "other").rename(lower / "small")
        for real in place.directory("d").lowers:
            if exchanged == "directory":
                real.give_up()  # as `refresh` does

    place.disk.meanwhile = exchange
    assert await place.copy_ups.done(file, Change(mode=0o100604)) is True
    assert (tmp_path / "upper/d/small").read_bytes() == b"content"
    assert (tmp_path / "upper/d/small").stat().st_mode == 0o100604
    for handle in handles:
        assert os.pread(handle.fd, 10, 0) == b"content"
        place.union.release_file(handle)


async def test_another_lies_in_its_place(place: Place, tmp_path: Path) -> None:
    """What somebody put into the upper behind our back is not lost."""
    (tmp_path / "elsewhere").write_bytes(b"theirs")
    place.disk.meanwhile = lambda: os.link(tmp_path / "elsewhere", tmp_path / "upper/d/small")
    with pytest.raises(OSError, match="exists"):
        await place.copy_ups.done(place.file("d/small"))
    assert (tmp_path / "upper/d/small").read_bytes() == b"theirs"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_the_disk_refuses(place: Place, tmp_path: Path, code: int) -> None:
    """The file stays what it was, and can be copied later."""
    file = place.file("d/small")
    place.disk.error = code
    with pytest.raises(OSError, match=os.strerror(code)):
        await place.copy_ups.done(file, Change(mode=0o600))
    assert not list((tmp_path / "upper/d").iterdir())
    assert not file.in_upper
    place.disk.error = 0
    assert await place.copy_ups.done(file, Change(mode=0o600)) is True


async def test_several_are_put_on_disk_together(place: Place, tmp_path: Path) -> None:
    await place.copy_ups.all_done([place.file(f"d/{name}") for name in DATA])
    assert place.disk.asked == [2], "an empty one need not, a large one is not simple"
    assert {path.name: path.read_bytes() for path in (tmp_path / "upper/d").iterdir()} == DATA
    assert [made.size for made in place.copy_ups.log.since(0)[1]] == [
        0,
        len(DATA["small"]),
        1 << 16,
        len(DATA["large"]),
    ]


@pytest.mark.parametrize("waits", [True, False], ids=["disk", "memory"])
async def test_what_leaves_its_place_knows_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """The mark of each file of a directory that is renamed is as without the extension, and is written once."""
    marks = []
    monkeypatch.setattr(syscalls, "is_in_memory", lambda fd: not waits)
    (tmp_path / "lower/d/e").mkdir(parents=True)
    for name, data in DATA.items():
        (tmp_path / "lower/d/e" / name).write_bytes(data)
    for device in (copy_ups.device, None):
        monkeypatch.setattr(copy_ups, "device", device)
        top = tmp_path / ("python" if device is None else "extension")
        for name in ("upper", "work"):
            (top / name).mkdir(parents=True)
        rewritten: list[bytes] = []
        rewrite = origin_mark.rewrite
        monkeypatch.setattr(
            origin_mark,
            "rewrite",
            lambda *args, r=rewritten, f=rewrite: r.append(args[2]) or f(*args),  # type: ignore[misc]
        )
        with in_process([tmp_path / "lower"], top / "upper", top / "work") as inside:
            inside.union.state.writable().unshared.learn((tmp_path / "lower").stat().st_dev, errno.EOPNOTSUPP)
            requests = Requests(inside.union)
            result = requests.rename(1, b"d", 1, b"moved", 0)
            if result is not None:
                await result
            inside.forget()
        monkeypatch.setattr(origin_mark, "rewrite", rewrite)
        found = {}
        for path in (top / "upper/moved").rglob("*"):
            (mark,) = [name for name in os.listxattr(path) if name.endswith("fuseunion.origin")]
            found[path.name] = os.getxattr(path, mark)[9:]
        marks.append(found)
        short = [value for value in rewritten if b"d/e/small" in value]
        assert len(short) == (device is None)
    assert marks[0] == marks[1]
    assert set(marks[0]) == {"e", *DATA}
    assert all(mark.endswith(b"d/e/" + name.encode()) for name, mark in marks[0].items() if name != "e")


async def test_none_of_several_is_shown_if_the_disk_refuses(place: Place, tmp_path: Path) -> None:
    place.disk.error = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        await place.copy_ups.all_done([place.file(f"d/{name}") for name in ("small", "full")])
    assert not list((tmp_path / "upper/d").iterdir())


async def test_what_goes_while_several_are_copied(place: Place, tmp_path: Path) -> None:
    place.disk.meanwhile = lambda: place.union.unlink(place.directory("d"), b"small")
    await place.copy_ups.all_done([place.file(f"d/{name}") for name in ("small", "full")])
    assert {path.name for path in (tmp_path / "upper/d").iterdir() if path.is_file()} == {"full"}


async def test_few_descriptors(place: Place, tmp_path: Path) -> None:
    """Those for whom there are none any more come later."""
    for number in range(40):
        (tmp_path / f"lower/d/f{number}").write_bytes(b"x")
    descriptors = place.union.state.descriptors
    free = 0
    while True:
        try:
            descriptors.take_for_copy()
        except OSError:
            break
        free += 1
    for _ in range(3):
        descriptors.give_back(2)
    await place.copy_ups.all_done([place.file(f"d/f{number}") for number in range(40)])
    descriptors.give_back(2 * (free - 3))
    assert len(list((tmp_path / "upper/d").iterdir())) == 40
    assert max(place.disk.asked) == 3


async def test_blocks_that_may_be_shared(place: Place) -> None:
    """Where that was not refused, it is tried, and then nothing waits for a disk."""
    unshared = place.union.state.writable().unshared
    unshared.__init__()  # type: ignore[misc]
    assert place.union.plain_copies.of(place.file("d/small")) is None


async def test_without_threads_of_the_module(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of ours puts it on disk."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    place.workers.syncing = None
    await place.copy_ups.all_done([place.file(f"d/{name}") for name in ("small", "full")])
    assert synced == [(tmp_path / "upper/d" / name).stat().st_ino for name in ("small", "full")]
