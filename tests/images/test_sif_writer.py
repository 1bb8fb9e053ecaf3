"""A SIF that is added to: what it then holds, that nothing else in it changed, and where it may be cut off."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuseunion.errors import ExitCode, UserError
from fuseunion.images.sif import reader, writer
from fuseunion.images.sif.layout import FsType, Sif, Use
from tests.images.sifs import DATA, ENCRYPTED, EXT, OVERLAY, ROW, SIGNATURE, SQUASHFS, TABLE, Entry, Layout, squashfs

SIZE = 8192
CONTENT = b"new" * 100


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def fill(fd: int) -> Callable[[int], None]:
    def write(offset: int) -> None:
        os.pwrite(fd, CONTENT, offset)

    return write


def add(path: Path) -> Sif:
    with opened(path) as fd:
        writer.add_overlay(fd, "x.sif", SIZE, fill(fd))
        return reader.read(fd, "x.sif")


def header(path: Path) -> tuple[int, int]:
    """The descriptors that are free, and the size of the data, as the header has them."""
    raw = path.read_bytes()
    return int.from_bytes(raw[80:88], "little"), int.from_bytes(raw[120:128], "little")


@pytest.mark.parametrize("group", [0, 1, 7])
def test_an_overlay(tmp_path: Path, group: int) -> None:
    root = squashfs()
    root.group = group
    path = Layout([Entry(0x4001, b"Bootstrap: none"), root]).write(tmp_path / "x.sif")
    before = path.read_bytes()
    sif = add(path)
    assert sif.primary is not None
    (added,) = sif.overlays
    assert (added.slot, added.number, added.size, added.filesystem, added.use) == (2, 3, SIZE, FsType.EXT, Use.OVERLAY)
    assert (added.group, added.architecture, added.uid) == (group or None, b"02", os.getuid())
    assert added.offset % 4096 == 0 and added.offset >= len(before)
    after = path.read_bytes()
    assert after[added.offset : added.end] == CONTENT.ljust(SIZE, b"\0") and len(after) == added.end
    assert header(path) == (48 - 3, added.end - sif.data)
    # All that was there is there, but for the descriptor that was free and the counts.
    row = TABLE + 2 * ROW
    assert after[128:row] == before[128:row]
    assert after[row + ROW : len(before)] == before[row + ROW :]
    assert after[:72] == before[:72] and after[88:120] == before[88:120]


def test_a_slot_between_others_and_a_number_that_is_taken(tmp_path: Path) -> None:
    entries = [squashfs(), Entry(used=0, number=0), Entry(0x4007, b"x", number=2)]
    sif = add(Layout(entries).write(tmp_path / "x.sif"))
    assert [(each.slot, each.number) for each in sif.descriptors] == [(0, 1), (1, 3), (2, 2)]


def test_bytes_behind_the_data_are_left_alone(tmp_path: Path) -> None:
    path = Layout([squashfs()]).write(tmp_path / "x.sif")
    with path.open("ab") as file:
        file.write(b"a stranger's" * 1000)
    before = path.read_bytes()
    (added,) = add(path).overlays
    assert path.read_bytes()[TABLE + 2 * ROW : len(before)] == before[TABLE + 2 * ROW :]
    assert added.offset >= len(before)


REFUSED = {
    "signed": (Layout([squashfs(), Entry(SIGNATURE, b"-----BEGIN")]), "is signed"),
    "encrypted": (Layout([Entry(content=b"?", filesystem=ENCRYPTED, use=2)]), "is encrypted"),
    "no root": (Layout([Entry(content=b"?", filesystem=SQUASHFS, use=DATA)]), "has no root filesystem"),
    "a second": (Layout([squashfs(), Entry(content=b"e", filesystem=EXT, use=OVERLAY)]), "already, partition 2"),
    "full": (Layout([squashfs()], slots=1), "all 1 descriptors of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    layout, says = REFUSED[case]
    path = layout.write(tmp_path / "x.sif")
    before = path.read_bytes()
    with pytest.raises(UserError, match=says) as refused:
        add(path)
    assert refused.value.exit_code == ExitCode.LAYERS
    assert path.read_bytes() == before


def test_an_overlay_that_only_reads_is_no_hindrance(tmp_path: Path) -> None:
    path = Layout([squashfs(), Entry(content=b"h", filesystem=SQUASHFS, use=OVERLAY)]).write(tmp_path / "x.sif")
    assert [each.filesystem for each in add(path).overlays] == [SQUASHFS, EXT]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path, error: BaseException) -> None:
    path = Layout([squashfs()]).write(tmp_path / "x.sif")
    before = path.read_bytes()

    def fail(offset: int) -> None:
        raise error

    with opened(path) as fd, pytest.raises(type(error)):
        writer.add_overlay(fd, "x.sif", SIZE, fail)
    assert path.read_bytes() == before


def test_cut_off_between_any_two_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing cleaned up, as after kill -9: there is no partition, or the whole one; another can be added."""
    changes = ("pwrite", "ftruncate")
    originals = {name: getattr(os, name) for name in changes}
    seen = []
    for last in range(20):
        path = Layout([squashfs()]).write(tmp_path / "x.sif")
        left = last

        def counted(name: str) -> Callable[..., object]:
            def call(*arguments: object) -> object:
                nonlocal left
                if left == 0:
                    raise InterruptedError
                left -= 1
                return originals[name](*arguments)

            return call

        with opened(path) as fd, monkeypatch.context() as patched:
            for name in changes:
                patched.setattr(os, name, counted(name))
            try:
                writer.add_overlay(fd, "x.sif", SIZE, fill(fd))
            except InterruptedError:
                pass
        with opened(path) as fd:
            sif = reader.read(fd, "x.sif")
            seen.append(len(sif.overlays))
            for each in sif.overlays:
                assert os.pread(fd, SIZE, each.offset) == CONTENT.ljust(SIZE, b"\0")
        if not sif.overlays:
            assert len(add(path).overlays) == 1
        if left:
            break
    # Before the size, the data, the descriptor, its byte; then it is there, with the counts and without.
    assert seen == [0, 0, 0, 0, 1, 1, 1]


def test_another_size(tmp_path: Path) -> None:
    path = Layout([squashfs()]).write(tmp_path / "x.sif")
    (added,) = add(path).overlays
    for size in (SIZE * 3, SIZE // 2):
        with opened(path) as fd:
            sif = reader.read(fd, "x.sif")
            (now,) = sif.overlays
            os.ftruncate(fd, now.offset + size)
            writer.resize_last(fd, sif, now, size)
            sif = reader.read(fd, "x.sif")
        (now,) = sif.overlays
        assert (now.offset, now.size, os.stat(path).st_size) == (added.offset, size, now.end)
        assert header(path) == (46, now.end - sif.data)


def test_numbers_that_leave_no_room(tmp_path: Path) -> None:
    """An id, and a size with its alignment, may be anything that fits into the field."""
    root = squashfs()
    taken = [Entry(0x4007, b"x", number=number) for number in (3, 0xFFFFFFFF)]
    path = Layout([root, *taken]).write(tmp_path / "x.sif")
    sif = add(path)
    (added,) = sif.overlays
    assert added.number == 4
    with opened(path) as fd:
        place = sif.table + added.slot * ROW
        os.pwrite(fd, (2**63 - 1).to_bytes(8, "little"), place + 33)
        os.ftruncate(fd, added.offset + SIZE * 3)
        writer.resize_last(fd, sif, added, SIZE * 3)
        (now,) = reader.read(fd, "x.sif").overlays
        assert now.size == int.from_bytes(os.pread(fd, 8, place + 33), "little") == SIZE * 3
