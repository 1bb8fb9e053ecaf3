"""What a SIF holds, and that one which is wrong says where; against the byte layouts of the format."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuseunion.errors import ExitCode, UserError
from fuseunion.images.sif.layout import DataType, Sif
from fuseunion.images.sif.reader import is_sif, read
from tests.images.sifs import (
    DATA,
    ENCRYPTED,
    EXT,
    OVERLAY,
    PARTITION,
    ROW,
    SIGNATURE,
    SQUASHFS,
    SYSTEM,
    TABLE,
    Entry,
    Layout,
    squashfs,
)


def _read(path: Path) -> Sif:
    fd = os.open(path, os.O_RDONLY)
    try:
        return read(fd, "x.sif")
    finally:
        os.close(fd)


def _of(tmp_path: Path, layout: Layout) -> Sif:
    return _read(layout.write(tmp_path / "x.sif"))


def _overlay(content: bytes = b"e" * 3000, group: int = 1, filesystem: int = EXT) -> Entry:
    return Entry(content=content, filesystem=filesystem, use=OVERLAY, group=group)


def test_a_root_filesystem(tmp_path: Path) -> None:
    sif = _of(tmp_path, Layout([squashfs()]))
    primary = sif.primary
    assert primary is not None
    assert (primary.offset, primary.size, primary.filesystem) == (32768, 5000, SQUASHFS)
    assert (primary.name, primary.architecture, primary.group) == ("root.squashfs", b"02", 1)
    assert (primary.created, primary.modified, primary.uid, primary.gid) == (1600000000, 1600000001, 1000, 100)
    assert (sif.created, sif.modified, sif.architecture, sif.identity) == (1500000000, 1500000001, b"02", b"U" * 16)
    assert (sif.slots, sif.table, sif.data) == (48, TABLE, 32176)
    assert sif.overlays == () and not sif.is_signed and not sif.is_encrypted


def test_every_type_of_data(tmp_path: Path) -> None:
    kinds = [*DataType, 0x4FFF]
    sif = _of(tmp_path, Layout([Entry(kind, b"%d" % kind, name=b"n%d" % kind) for kind in kinds]))
    assert [each.kind for each in sif.descriptors] == kinds
    assert [each.name for each in sif.descriptors] == [f"n{kind}" for kind in kinds]
    assert [each.size for each in sif.descriptors] == [len(b"%d" % kind) for kind in kinds]
    assert [each.kind for each in sif.partitions] == [DataType.PARTITION]
    assert all(each.filesystem is None for each in sif.descriptors if each.kind != PARTITION)
    assert sif.primary is None


def test_partitions_and_overlays_in_their_order(tmp_path: Path) -> None:
    entries = [
        Entry(0x4001, b"Bootstrap: none"),
        _overlay(b"h" * 10, filesystem=SQUASHFS),
        Entry(content=b"d", filesystem=4, use=DATA),
        squashfs(),
        Entry(content=b"y", filesystem=SQUASHFS, use=SYSTEM),
        _overlay(),
        _overlay(group=2),
        _overlay(group=0),
    ]
    sif = _of(tmp_path, Layout(entries))
    assert [each.number for each in sif.partitions] == [2, 3, 4, 5, 6, 7, 8]
    assert sif.primary is not None and sif.primary.number == 4
    assert [(each.number, each.filesystem, each.size) for each in sif.overlays] == [
        (2, SQUASHFS, 10),
        (6, EXT, 3000),
    ]


def test_slots_that_are_not_used_are_not_read(tmp_path: Path) -> None:
    hole = Entry(used=0, number=0, offset=-5, size=-5)
    sif = _of(tmp_path, Layout([hole, squashfs(), hole, _overlay()]))
    assert [(each.slot, each.number) for each in sif.descriptors] == [(1, 2), (3, 4)]


def test_signed(tmp_path: Path) -> None:
    signature = Entry(SIGNATURE, b"-----BEGIN", linked=0xF0000001)
    sif = _of(tmp_path, Layout([squashfs(), signature]))
    assert sif.is_signed
    assert (sif.descriptors[1].linked, sif.descriptors[1].linked_to_group) == (1, True)


@pytest.mark.parametrize("filesystem", [ENCRYPTED, 6])
def test_encrypted(tmp_path: Path, filesystem: int) -> None:
    assert _of(tmp_path, Layout([Entry(content=b"?", filesystem=filesystem, use=2)])).is_encrypted


def test_a_count_of_free_descriptors_that_lags_behind_is_not_believed(tmp_path: Path) -> None:
    assert _of(tmp_path, Layout([squashfs()], header={80: 48})).primary


def test_a_partition_at_the_very_end_and_an_empty_one(tmp_path: Path) -> None:
    sif = _of(tmp_path, Layout([squashfs(), Entry(0x4007, b"")]))
    assert sif.descriptors[1].size == 0


def test_the_magic() -> None:
    assert is_sif(Layout().bytes()[:42])
    assert not is_sif(b"hsqs" * 20)
    assert not is_sif(b"")


FAR = 1 << 62
HOSTILE = {
    "no magic": (Layout(magic=b"SIF_MAGIK\0"), "is not a SIF"),
    "another version": (Layout(version=b"99\0"), "of version b'99'; this program reads version 01"),
    "a huge count": (Layout(header={88: FAR}), f"its table has {FAR} descriptors"),
    "a negative count": (Layout(header={88: -1}), "its table has -1 descriptors"),
    "a table outside": (Layout(header={96: FAR}), f"its table of descriptors, 28080 bytes at {FAR}"),
    "a table in the header": (Layout(header={96: 64}), "28080 bytes at 64, does not lie"),
    "a table before the file": (Layout(header={96: -4096}), "28080 bytes at -4096"),
    "a table of too few bytes": (Layout(header={104: 584}), "its table of descriptors, 584 bytes"),
    "data in the table": (Layout(header={112: TABLE}), "its data, 0 bytes at 4096"),
    "negative data": (Layout(header={120: -1}), "its data, -1 bytes"),
    "a partition outside": (Layout([Entry(content=b"x", offset=FAR)]), f"descriptor 1, 1 bytes at {FAR}"),
    "a partition too long": (Layout([Entry(content=b"x", size=FAR)]), f"descriptor 1, {FAR} bytes at 32768"),
    "beyond 64 bits": (Layout([Entry(content=b"x", offset=(1 << 63) - 1, size=1)]), "does not lie in the file"),
    "a partition before": (Layout([Entry(content=b"x", offset=-1)]), "1 bytes at -1"),
    "a negative size": (Layout([Entry(content=b"x", size=-1)]), "-1 bytes at 32768"),
    "a partition in the table": (Layout([Entry(content=b"x", offset=TABLE)]), "1 bytes at 4096"),
    "an overlap": (
        Layout([squashfs(), Entry(content=b"x" * 9000, offset=36864 - 4096)]),
        "the data of descriptors 1 and 2 overlap",
    ),
    "the same id": (Layout([squashfs(), Entry(0x4007, b"x", number=1)]), "two descriptors have the id 1"),
    "no id": (Layout([squashfs(), Entry(0x4007, b"x", number=0)]), "descriptor 2 has the id 0"),
    "two roots": (Layout([squashfs(), squashfs()]), "it has 2 primary partitions"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(tmp_path: Path, case: str) -> None:
    layout, says = HOSTILE[case]
    with pytest.raises(UserError) as refused:
        _of(tmp_path, layout)
    assert says in refused.value.message and "x.sif" in refused.value.message
    assert refused.value.exit_code == ExitCode.LAYERS


@pytest.mark.parametrize("length", [0, 31, 41, 42, 127, 128, TABLE, TABLE + ROW, 32176])
def test_truncated(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.sif"
    path.write_bytes(Layout([squashfs()]).bytes()[:length])
    with pytest.raises(UserError):
        _read(path)


def test_whatever_is_in_the_head_there_is_one_error_at_most(tmp_path: Path) -> None:
    """Each byte of the header and of two descriptors, set to what numbers are broken by."""
    whole = Layout([squashfs(200), _overlay(b"e" * 50)]).bytes()
    path = tmp_path / "x.sif"
    refused = 0
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, whole)
    for at in [*range(128), *range(TABLE, TABLE + 80), *range(TABLE + ROW, TABLE + ROW + 80)]:
        for value in (0x00, 0x7F, 0xFF):
            os.pwrite(fd, bytes([value]), at)
            try:
                read(fd, "x.sif")
            except UserError:
                refused += 1
        os.pwrite(fd, whole[at : at + 1], at)
    os.close(fd)
    assert refused > 100


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    sif = _of(tmp_path, Layout([Entry(0x4007, b"x", name=b"\xff\n" + b"n" * 126)]))
    assert sif.descriptors[0].name == "\udcff\n" + "n" * 126
