"""SIF files, made byte by byte from the table of the format, and so that anything in them can be wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = 4096
TABLE = 4096
ROW = 585

PARTITION, SIGNATURE = 0x4004, 0x4005
SQUASHFS, EXT, ENCRYPTED = 1, 2, 5
SYSTEM, PRIMARY, DATA, OVERLAY = 1, 2, 3, 4


@dataclass
class Entry:
    """One descriptor and its data; a number that is given counts, whatever the data is.

    Attributes:
        group: without its high bits; 0 for none.
    """

    kind: int = PARTITION
    content: bytes = b""
    filesystem: int = 0
    use: int = 0
    group: int = 1
    linked: int = 0
    name: bytes = b""
    number: int | None = None
    offset: int | None = None
    size: int | None = None
    used: int = 1
    architecture: bytes = b"02\0"


@dataclass
class Layout:
    """A whole file.

    Attributes:
        slots: descriptors in the table.
        header: numbers of the header to be set, by their offset in it.
    """

    entries: list[Entry] = field(default_factory=list)
    slots: int = 48
    header: dict[int, int] = field(default_factory=dict)
    version: bytes = b"01\0"
    magic: bytes = b"SIF_MAGIC\0"

    def bytes(self) -> bytes:
        """The file."""
        data = TABLE + self.slots * ROW
        rows, body, end = b"", b"", data
        for index, entry in enumerate(self.entries):
            start = -(-end // BLOCK) * BLOCK
            offset = start if entry.offset is None else entry.offset
            size = len(entry.content) if entry.size is None else entry.size
            body += bytes(start - end) + entry.content
            end = start + len(entry.content)
            number = index + 1 if entry.number is None else entry.number
            group = 0xF0000000 | entry.group if entry.group else 0
            rows += struct.pack("<iBIII", entry.kind, entry.used, number, group, entry.linked)
            rows += struct.pack("<qqqqqqq", offset, size, size, 1600000000, 1600000001, 1000, 100)
            extra = b""
            if entry.kind == PARTITION:
                extra = struct.pack("<ii3s", entry.filesystem, entry.use, entry.architecture)
            rows += entry.name.ljust(128, b"\0") + extra.ljust(384, b"\0")
        head = b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + self.magic + self.version + b"02\0" + b"U" * 16
        free = self.slots - sum(1 for entry in self.entries if entry.used)
        head += struct.pack("<qqqqqqqq", 1500000000, 1500000001, free, self.slots, TABLE, self.slots * ROW, data, 0)
        written = bytearray(head)
        written[120:128] = struct.pack("<q", end - data)
        for place, number in self.header.items():
            written[place : place + 8] = struct.pack("<q", number)
        return (bytes(written).ljust(TABLE, b"\0") + rows.ljust(self.slots * ROW, b"\0")) + body

    def write(self, path: Path) -> Path:
        """Make the file."""
        path.write_bytes(self.bytes())
        return path


def squashfs(size: int = 5000) -> Entry:
    """A root filesystem that begins as a squashfs does."""
    return Entry(content=b"hsqs".ljust(size, b"s"), filesystem=SQUASHFS, use=PRIMARY, name=b"root.squashfs")
