"""Reads the header and the descriptors of a SIF, which may be anybody's.

Nothing that the file says is used before it was checked: every number is in its range, the table and all data lie
within the file, no two of them overlap, and how much is read does not depend on the file alone. What is wrong is one
UserError that names it. What is only odd is not refused: types and filesystems that later versions may add keep their
number, and the count of free descriptors, which a writer changes last, is not believed.
"""

from __future__ import annotations

import os
from typing import Any

from fuseunion.errors import ExitCode, UserError
from fuseunion.images.sif.layout import (
    DESCRIPTOR,
    GROUP,
    HEADER,
    MAGIC,
    MAGIC_OFFSET,
    MOST_DESCRIPTORS,
    PARTITION,
    VERSION,
    DataType,
    Descriptor,
    Sif,
    Use,
)


def is_sif(start: bytes) -> bool:
    """Whether a file that begins with these bytes (42 or more) says that it is a SIF."""
    return start[MAGIC_OFFSET : MAGIC_OFFSET + len(MAGIC)] == MAGIC


def read(fd: int, path: str) -> Sif:
    """What a SIF holds.

    Args:
        fd: of a regular file, readable; its position is neither used nor moved.
        path: of the file, for messages.

    Raises:
        UserError: LAYERS: not a SIF, or one that contradicts itself.
        OSError: EIO, as pread(2).
    """
    size = os.fstat(fd).st_size
    start = os.pread(fd, HEADER.size, 0)
    if not is_sif(start):
        raise UserError(f"'{path}' is not a SIF: it has no SIF magic", ExitCode.LAYERS)
    if len(start) < HEADER.size:
        raise _damaged(path, f"it ends after {len(start)} bytes, in its header")
    _, _, version, architecture, identity, *numbers = HEADER.unpack(start)
    if version != VERSION:
        raise UserError(
            f"'{path}' is a SIF of version {version.rstrip(bytes(1))!r}; this program reads version 01", ExitCode.LAYERS
        )
    created, modified, _, slots, table, table_size, data, data_size = numbers
    if not 0 <= slots <= MOST_DESCRIPTORS:
        raise _damaged(path, f"its table has {slots} descriptors; at most {MOST_DESCRIPTORS} are read")
    needed = slots * DESCRIPTOR.size
    if table < HEADER.size or table_size < needed or table + needed > size:
        raise _damaged(path, f"its table of descriptors, {table_size} bytes at {table}, does not lie in the file")
    if data < table + needed or data_size < 0:
        raise _damaged(path, f"its data, {data_size} bytes at {data}, does not lie behind its table")
    rows = os.pread(fd, needed, table)
    if len(rows) < needed:
        raise _damaged(path, "it became shorter while it was read")
    found = tuple(_descriptor(slot, row, path) for slot, row in enumerate(DESCRIPTOR.iter_unpack(rows)) if row[1])
    _check_places(found, path, data, size)
    _check_meaning(found, path)
    return Sif(architecture.rstrip(b"\0"), identity, created, modified, slots, table, data, found)


def _descriptor(slot: int, row: tuple[Any, ...], path: str) -> Descriptor:
    kind, _, number, group, linked, offset, size, _, created, modified, uid, gid, name, extra = row
    if number == 0:
        raise _damaged(path, f"descriptor {slot + 1} has the id 0")
    filesystem, use, architecture = PARTITION.unpack_from(extra) if kind == DataType.PARTITION else (None, None, None)
    return Descriptor(
        slot=slot,
        kind=kind,
        number=number,
        group=group & ~GROUP or None,
        linked=linked & ~GROUP or None,
        linked_to_group=linked & GROUP == GROUP,
        offset=offset,
        size=size,
        created=created,
        modified=modified,
        uid=uid,
        gid=gid,
        name=os.fsdecode(name.partition(b"\0")[0]),
        filesystem=filesystem,
        use=use,
        architecture=architecture and architecture.rstrip(b"\0"),
    )


def _check_places(found: tuple[Descriptor, ...], path: str, data: int, size: int) -> None:
    """All data lies behind the table and within the file, and nothing is named twice."""
    for each in found:
        if each.offset < data or each.size < 0 or each.end > size:
            raise _damaged(
                path,
                f"the data of descriptor {each.number}, {each.size} bytes at {each.offset},"
                f" does not lie in the file, where there is data from {data} to {size}",
            )
    before = None
    for each in sorted((each for each in found if each.size), key=lambda each: each.offset):
        if before is not None and each.offset < before.end:
            raise _damaged(path, f"the data of descriptors {before.number} and {each.number} overlap")
        before = each


def _check_meaning(found: tuple[Descriptor, ...], path: str) -> None:
    numbers = [each.number for each in found]
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise _damaged(path, f"two descriptors have the id {twice}")
    primaries = [each.number for each in found if each.use == Use.PRIMARY_SYSTEM]
    if len(primaries) > 1:
        raise _damaged(path, f"it has {len(primaries)} primary partitions")


def _damaged(path: str, what: str) -> UserError:
    return UserError(f"the SIF '{path}' is damaged: {what}", ExitCode.LAYERS)
