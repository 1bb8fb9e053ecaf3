"""How the facts of the hard-link index are named (core/marks/link_index.py says what they mean).

    KEY-COUNT          the copy of a lower file
    KEY-COUNT-TOKEN    one name of it that does not show it any more

KEY is number, mtime (ns) and size of the lower file in hex with `-` between them, COUNT its links in decimal, TOKEN a
hash of 24 hex digits.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from fuseunion.core.format.digest import blake2b
from fuseunion.core.format.numbers import Ino

# A count of links has 32 bits (statx(2), stx_nlink), a number 63 (numbers.py).
_KEY = re.compile(rb"([0-9a-f]{1,16})-[0-9a-f]{1,16}-[0-9a-f]{1,16}")
_ENTRY = re.compile(rb"([0-9a-f]+-[0-9a-f]+-[0-9a-f]+)-([0-9]{1,10})(?:-([0-9a-f]{24}))?")
_NUMBERS = range(1, 1 << 63)


class LinkEntry(NamedTuple):
    """One fact of the index.

    Attributes:
        key: of the lower file.
        number: of the lower file.
        lower_nlink: its count of links.
        token: of the name that does not show it any more; None for the copy.
    """

    key: bytes
    number: Ino
    lower_nlink: int
    token: bytes | None


def key_of(number: Ino, st: os.stat_result) -> bytes:
    """What the names of a lower file's entries begin with. Size and mtime guard against a lower that was replaced
    between two mounts."""
    return b"%x-%s" % (number, guard_of(st))


def guard_of(st: os.stat_result) -> bytes:
    """The part of a key that needs no number of the union."""
    return b"%x-%x" % (st.st_mtime_ns & 0xFFFFFFFFFFFFFFFF, st.st_size)


def guard_in(key: bytes) -> bytes:
    """As `guard_of`, from a key."""
    return key.partition(b"-")[2]


def key_of_number(number: Ino) -> bytes:
    """The key of a copy that only needs its number kept; no lower file with several names has it."""
    return b"%x-0-0" % number


def token_of(directory: Ino, name: bytes) -> bytes:
    """The token of one lower name, `directory` being the number of the lower directory that holds it."""
    return blake2b(b"%d/%s" % (directory, name), digest_size=12).hexdigest().encode()


def entry_name(key: bytes, lower_nlink: int, token: bytes | None) -> bytes:
    """The name of one fact."""
    return b"%s-%d" % (key, lower_nlink) + (b"" if token is None else b"-" + token)


def number_in(key: bytes) -> Ino | None:
    """The number in a key; None for what `key_of` does not give."""
    match = _KEY.fullmatch(key)
    number = int(match[1], 16) if match else 0
    return Ino(number) if number in _NUMBERS else None


def parse(name: bytes) -> LinkEntry | None:
    """What a name in the index says; None for one that `entry_name` does not give."""
    match = _ENTRY.fullmatch(name)
    if match is None:
        return None
    number = number_in(match[1])
    if number is None:
        return None
    entry = LinkEntry(match[1], number, int(match[2]), match[3])
    return entry if entry_name(entry.key, entry.lower_nlink, entry.token) == name else None
