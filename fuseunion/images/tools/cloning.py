"""The bytes of one file in another: blocks are shared where the filesystem can, and holes stay holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from fuseunion.core.copying.copy_data import data_segments
from fuseunion.linux import syscalls

_PIECE = 8 << 20
_BLOCK = 4096
_NOT_HERE = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ENOTTY})
"""What FICLONE and copy_file_range(2) say where they cannot."""


def share(source: int, target: int) -> bool:
    """Give a whole file the blocks of another (FICLONE); False where that cannot be."""
    try:
        syscalls.ficlone(target, source)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        return False
    return True


def copy(
    source: int,
    target: int,
    *,
    begin: int = 0,
    size: int | None = None,
    at: int = 0,
    digs: bool = False,
    report: Callable[[int], None] = lambda done: None,
) -> None:
    """Copy the data of a file, or of a part of it.

    Args:
        begin: the offset in `source` at which the part begins, in bytes.
        size: how long it is, in bytes; None for all that follows.
        target: has a hole where nothing is written; becomes as long as it has to be.
        at: the offset in `target` at which the copy begins, in bytes.
        digs: whether blocks of zeros become holes too.
        report: told how many bytes were gone through.

    Raises:
        OSError: ENOSPC, EDQUOT, EIO; EIO when the source became shorter.
    """
    size = os.fstat(source).st_size - begin if size is None else size
    move = _dig if digs else _copy
    for start, end in data_segments(source, begin + size):
        offset = max(start, begin)
        while offset < end:
            offset += move(source, target, offset, min(_PIECE, end - offset), at - begin)
            report(offset - begin)
    if os.fstat(target).st_size < at + size:
        os.ftruncate(target, at + size)
    report(size)


def _copy(source: int, target: int, offset: int, length: int, shift: int) -> int:
    try:
        if copied := os.copy_file_range(source, target, length, offset, offset + shift):
            return copied
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
    data = _read(source, length, offset)
    return os.pwrite(target, data, offset + shift)


def _dig(source: int, target: int, offset: int, length: int, shift: int) -> int:
    data = _read(source, length, offset)
    for begin in range(0, len(data), _BLOCK):
        block = data[begin : begin + _BLOCK]
        while block.strip(b"\0"):
            written = os.pwrite(target, block, offset + shift + begin)
            block, begin = block[written:], begin + written
    return len(data)


def _read(source: int, length: int, offset: int) -> bytes:
    data = os.pread(source, length, offset)
    if not data:
        raise OSError(errno.EIO, "the file became shorter while it was copied")
    return data
