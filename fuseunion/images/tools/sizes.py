"""Sizes as people write them: 2G, 500M, +1G, -200M."""

from __future__ import annotations

import re

from fuseunion.errors import UserError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
LARGEST = 16 << 40
"""Bytes: what ext3 and ext4 have with blocks of 4 KiB and block numbers of 32 bits."""


def parse(text: str, name: str, *, before: int | None = None) -> int:
    """A number of bytes.

    Args:
        text: a whole number with K, M, G or T.
        name: of the option or operand, for messages.
        before: the size that `+` and `-` count from; None where they mean nothing.

    Raises:
        UserError: USAGE.
    """
    found = re.fullmatch(r"([+-]?)([0-9]{1,30})([KMGT]?)(i?B)?", text.upper().replace("IB", "iB"), re.ASCII)
    if found is None or (found[1] and before is None) or (found[4] and not found[3]):
        more = ", +500M or -1G" if before is not None else ""
        raise UserError(f"{name} {text}: expected a size such as 512M or 2G{more}")
    size = int(found[2]) * _UNITS[found[3]]
    if found[1]:
        size = (before or 0) + (size if found[1] == "+" else -size)
    if not 0 < size <= LARGEST:
        raise UserError(f"{name} {text}: that is {size} bytes; expected a size above 0 and up to 16T")
    return size


def shown(size: int) -> str:
    """As people read it: 2.0G."""
    value = float(size)
    for unit in ("B", "K", "M", "G"):
        if value < 1024:
            return f"{size}B" if unit == "B" else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}T"
