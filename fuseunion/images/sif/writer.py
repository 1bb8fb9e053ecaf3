"""Adds an overlay partition to a SIF, and changes the size of one.

A SIF is somebody's whole container, so it is added to in an order in which it stays one, wherever the machine stops:

    1  the data, behind everything that is in the file      nothing refers to it
    2  fsync
    3  the descriptor, but for the byte that makes it used  nobody reads it
    4  fsync
    5  that byte; fsync                                     the partition is there: one byte is written or is not
    6  the counts in the header; fsync                      within one sector; readers do not depend on them

What is cut off before 5 leaves bytes at the end of the file, which are taken away again unless the process was killed.
Nothing that was in the file is written over. Where a signature or a key would be spoiled, or where there would be two
overlays to write to, it refuses.
"""

from __future__ import annotations

import itertools
import os
import struct
import time
from collections.abc import Callable

from fuseunion.errors import ExitCode, UserError
from fuseunion.images.sif import reader
from fuseunion.images.sif.layout import (
    ALIGNMENT,
    COUNTS_OFFSET,
    DESCRIPTOR,
    GROUP,
    PARTITION,
    USED_OFFSET,
    DataType,
    Descriptor,
    FsType,
    Sif,
    Use,
)

_COUNTS = struct.Struct("<qq")
_DATA_SIZE_OFFSET = 120


def refuse(sif: Sif, path: str) -> None:
    """Refuse a SIF that must not be changed.

    Raises:
        UserError: LAYERS: it is signed, or encrypted.
    """
    if sif.is_signed:
        raise UserError(
            f"'{path}' is signed, and a change would make the signature void; use a copy without it, or an image of "
            "its own beside it",
            ExitCode.LAYERS,
        )
    if sif.is_encrypted:
        raise UserError(
            f"'{path}' is encrypted and cannot hold an overlay; use an image of its own beside it", ExitCode.LAYERS
        )


def refuse_overlay(sif: Sif, path: str) -> None:
    """Refuse a SIF to which no overlay can be added.

    Raises:
        UserError: LAYERS: signed, encrypted, without a root filesystem, with an overlay that can be written, or full.
    """
    refuse(sif, path)
    if sif.primary is None:
        raise UserError(f"'{path}' has no root filesystem on which an overlay could lie", ExitCode.LAYERS)
    there = next((each for each in sif.overlays if each.filesystem == FsType.EXT), None)
    if there is not None:
        raise UserError(
            f"'{path}' has an overlay that can be written already, partition {there.number}; an image of its own "
            "beside it can be a second",
            ExitCode.LAYERS,
        )
    if len(sif.descriptors) >= sif.slots:
        raise UserError(f"all {sif.slots} descriptors of '{path}' are in use; make the SIF anew", ExitCode.LAYERS)


def add_overlay(fd: int, path: str, size: int, fill: Callable[[int], None]) -> Descriptor:
    """Add a partition with an ext filesystem, which lies on the root filesystem.

    Args:
        fd: of the SIF, O_RDWR, locked.
        path: of it, for messages.
        size: of the partition in bytes, a multiple of a block.
        fill: writes the filesystem, given the offset in `fd` at which it begins.

    Returns:
        What was added.
    Raises:
        UserError: LAYERS, as `refuse_overlay`.
        OSError: ENOSPC, EIO: the file is as it was.
    """
    sif = reader.read(fd, path)
    refuse_overlay(sif, path)
    before = os.fstat(fd).st_size
    offset = -(-max(before, sif.data) // ALIGNMENT) * ALIGNMENT
    row, added = _row(sif, offset, size, offset - before + size)
    place = sif.table + added.slot * DESCRIPTOR.size
    try:
        os.ftruncate(fd, offset + size)
        fill(offset)
        os.fsync(fd)
        _write(fd, row[:USED_OFFSET] + b"\0" + row[USED_OFFSET + 1 :], place)
        os.fsync(fd)
    except BaseException:
        os.ftruncate(fd, before)
        raise
    _write(fd, b"\1", place + USED_OFFSET)
    os.fsync(fd)
    _write_counts(fd, sif, used=len(sif.descriptors) + 1, end=offset + size)
    return added


def resize_last(fd: int, sif: Sif, partition: Descriptor, size: int) -> None:
    """Note that the last data in a SIF has another size.

    Args:
        fd: of a copy that nobody else has, in which the data is what it is to be: until now it is no valid SIF.
        sif: what it was copied from.
        partition: of it; behind it there is nothing.
        size: bytes.
    """
    place = sif.table + partition.slot * DESCRIPTOR.size
    row = list(DESCRIPTOR.unpack(os.pread(fd, DESCRIPTOR.size, place)))
    # What lies before it to align it; a file may say anything.
    padding = row[7] - partition.size if 0 <= row[7] - partition.size <= partition.offset else 0
    row[6], row[7], row[9] = size, padding + size, int(time.time())
    _write(fd, DESCRIPTOR.pack(*row), place)
    _write_counts(fd, sif, used=len(sif.descriptors), end=partition.offset + size)


def _row(sif: Sif, offset: int, size: int, padded: int) -> tuple[bytes, Descriptor]:
    """The descriptor in the first free slot."""
    primary = sif.primary
    assert primary is not None
    taken = {each.slot for each in sif.descriptors}
    numbers = {each.number for each in sif.descriptors}
    slot = next(slot for slot in range(sif.slots) if slot not in taken)
    # Apptainer numbers them by their slots.
    number = next(number for number in itertools.count(slot + 1) if number not in numbers)
    now = int(time.time())
    added = Descriptor(
        slot=slot,
        kind=DataType.PARTITION,
        number=number,
        group=primary.group,
        linked=None,
        linked_to_group=False,
        offset=offset,
        size=size,
        created=now,
        modified=now,
        uid=os.getuid(),
        gid=os.getgid(),
        name="",
        filesystem=FsType.EXT,
        use=Use.OVERLAY,
        architecture=primary.architecture,
    )
    extra = PARTITION.pack(FsType.EXT, Use.OVERLAY, primary.architecture or b"")
    group = primary.group | GROUP if primary.group else 0
    times = (now, now, added.uid, added.gid)
    row = DESCRIPTOR.pack(DataType.PARTITION, 1, number, group, 0, offset, size, padded, *times, b"", extra)
    return row, added


def _write_counts(fd: int, sif: Sif, *, used: int, end: int) -> None:
    """One write of everything from `modified` to the end of the header."""
    counts = bytearray(os.pread(fd, _DATA_SIZE_OFFSET + 8 - COUNTS_OFFSET, COUNTS_OFFSET))
    _COUNTS.pack_into(counts, 0, int(time.time()), sif.slots - used)
    struct.pack_into("<q", counts, _DATA_SIZE_OFFSET - COUNTS_OFFSET, end - sif.data)
    _write(fd, bytes(counts), COUNTS_OFFSET)
    os.fsync(fd)


def _write(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
