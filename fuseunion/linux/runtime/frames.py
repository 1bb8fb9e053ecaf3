"""How a command and a daemon talk at the control socket: messages of records of fields.

    message    its length in bytes (4 bytes, the highest first), records
    record     fields, and a zero byte
    field      NAME=VALUE, and a zero byte

So every path is itself. A name may occur several times in a record.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable

LENGTH = struct.Struct("!I")

LARGEST_ORDER = 1 << 16
"""Bytes of what a command may send."""

LARGEST_ANSWER = 1 << 24

Record = dict[str, list[str]]


def packed(records: Iterable[Iterable[tuple[str, str | bytes | float]]]) -> bytes:
    """A message."""
    parts = []
    for record in records:
        for name, value in record:
            parts.append(
                name.encode() + b"=" + (value if isinstance(value, bytes) else os.fsencode(str(value))) + b"\0"
            )
        parts.append(b"\0")
    body = b"".join(parts)
    return LENGTH.pack(len(body)) + body


def records(body: bytes) -> list[Record]:
    """The records of a message; what is none of ours makes some that say nothing."""
    found: list[Record] = []
    current: Record = {}
    for field in body.split(b"\0")[:-1]:
        if not field:
            found.append(current)
            current = {}
            continue
        name, _, value = field.partition(b"=")
        current.setdefault(os.fsdecode(name), []).append(os.fsdecode(value))
    return found


def first(record: Record, name: str, default: str = "") -> str:
    """The first value of a field."""
    return next(iter(record.get(name, ())), default)
