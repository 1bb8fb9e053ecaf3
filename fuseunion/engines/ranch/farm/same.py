"""Whether a private copy is still what it was copied from."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack

from fuseunion.core.disk.realdir import RealDir
from fuseunion.engines.ranch.farm.portable import equal_xattrs
from fuseunion.engines.ranch.farm.private import reading
from fuseunion.engines.ranch.record.lending import Legible, legible
from fuseunion.engines.ranch.record.owners import Owners, same_attributes

_BLOCK = 1 << 20


def same_file(
    made: RealDir,
    made_name: bytes,
    real: RealDir,
    name: bytes,
    owners: Owners | None,
    lend: Legible = legible,
) -> bool:
    """Whether a private copy equals a regular file of a layer: in type, mode, owner, time, attributes and data.

    Args:
        made, made_name: where the copy lies.
        real, name: where the file lies.
        owners: who made the copy, where that can be told.
        lend: what lends the permission to read them.

    Raises:
        OSError: one of them cannot be read.
    """
    with ExitStack() as opened:
        with lend(made, None), lend(real, None):
            a, b = made.stat(made_name), real.stat(name)
            if a is None or b is None or not (stat.S_ISREG(a.st_mode) and stat.S_ISREG(b.st_mode)):
                return False
            if os.path.samestat(a, b):
                return True
            if a.st_size != b.st_size or not same_attributes(a, b, owners):
                return False
            one = opened.enter_context(reading(made, made_name, lend))
            other = opened.enter_context(reading(real, name, lend))
        return equal_xattrs(one.attributes, other.attributes, owners) and _same_data(one.fd, other.fd)


def _same_data(first: int, second: int) -> bool:
    while block := os.read(first, _BLOCK):
        if block != _read_exactly(second, len(block)):
            return False
    return True


def _read_exactly(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            break
        data += more
    return data
