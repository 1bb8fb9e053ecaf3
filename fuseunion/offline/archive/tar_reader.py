"""Reading a tar archive that anybody may have made.

tarfile reads the headers. It would keep every one in memory, read a header of any length, and take a damaged header in
the middle for the end of the archive; so it is given a stream that goes forward only, that gives no more than _MOST
bytes of headers for one member, and that knows what it has read last: an archive ends with an empty block, or is
damaged.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import BinaryIO

from fuseunion.offline.archive import compression
from fuseunion.offline.archive.tar_writer import XATTR

_MOST = 1 << 20
_NEVER = 1 << 62
_RUNS = re.compile(rb"[0-9]+")
_DIGITS = 512
"""tarfile looks through a header in a time that grows with the square of the digits in a row (CVE-2024-6232)."""

_PIECE = 1 << 20
_BLOCK = 512
_XATTR = XATTR.decode()
_LARGEST_TIME = 1 << 40
"""Seconds: no filesystem keeps a later time."""


class DamagedError(Exception):
    """The archive cannot be read; the text says why, in a few words."""


class _Forward(io.RawIOBase):
    """A stream with the tell and seek that tarfile needs, forward only."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._at = 0
        self._header_end = _MOST
        self.last = b""

    def new_member(self) -> None:
        """What is read from here on is headers."""
        self._header_end = self._at + _MOST

    def content(self) -> None:
        """What is read from here on is content."""
        self._header_end = _NEVER

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence != 0 or offset < self._at:
            raise DamagedError("a header points backwards")
        self._header_end += offset - self._at
        if self._source.seekable():
            self._source.seek(offset - self._at, os.SEEK_CUR)
            self._at = offset
        while self._at < offset:
            if not self._take(min(_PIECE, offset - self._at)):
                raise DamagedError("it ends in the middle of a file")
        return self._at

    def read(self, size: int = -1) -> bytes:
        if size < 0 or self._at + size > self._header_end:
            raise DamagedError("a header is too long")
        data = b""
        while len(data) < size:
            piece = self._take(min(_PIECE, size - len(data)))
            if not piece:
                break
            data += piece
        if size > _BLOCK and self._header_end < _NEVER and any(len(run) > _DIGITS for run in _RUNS.findall(data)):
            raise DamagedError("a header is malformed")
        return data

    def _take(self, size: int) -> bytes:
        try:
            data = self._source.read(size)
        except Exception as error:
            if compression.is_damage(error):
                raise DamagedError(f"its compressed data is damaged ({error})") from None
            raise
        self._at += len(data)
        self.last = (self.last + data)[-_BLOCK:]
        return data


class Members:
    """The members of an archive, one after another.

    Args:
        source: the archive, not compressed.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._stream = _Forward(source)
        self._end = 0
        """Where the member ends that was given last."""

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """Each member; its content may be read before the next is asked for.

        Raises:
            DamagedError, OSError.
        """
        stream = self._stream
        try:
            tar = tarfile.TarFile(fileobj=stream, errors="surrogateescape", encoding="utf-8")
            # It has looked at the first one already. What is none there it would leave out, and go on with the second.
            has_first = tar.firstmember is not None  # type: ignore[attr-defined]
            while has_first:
                stream.new_member()
                member = tar.next()
                tar.members.clear()  # type: ignore[attr-defined]
                tar.pax_headers = {}  # global ones, which say nothing of a layer and would add up
                if member is None:
                    break
                stream.content()
                self._end = tar.offset
                yield member
        except (tarfile.TarError, ValueError, ArithmeticError, RecursionError) as error:
            raise DamagedError(f"a header is malformed ({error})") from None
        if stream.last.strip(b"\0") or not stream.last:
            raise DamagedError("it is no tar archive, or ends too soon")

    def content(self, member: tarfile.TarInfo) -> Iterator[tuple[int, bytes]]:
        """Pieces of the content of a regular file, each with its offset.

        Raises:
            DamagedError, OSError.
        """
        stream = self._stream
        at = stream.seek(member.offset_data)
        holes: list[tuple[int, int]] | None = getattr(member, "sparse", None)
        ranges = [(0, member.size)] if holes is None else holes
        end = 0
        for offset, size in ranges:
            beyond = holes is not None and at + size > self._end
            if offset < end or size < 0 or offset + size > member.size or beyond:
                raise DamagedError("a sparse file has impossible holes")
            end = offset + size
            while offset < end:
                piece = stream.read(min(_PIECE, end - offset))
                if not piece:
                    raise DamagedError("it ends in the middle of a file")
                yield offset, piece
                offset += len(piece)
                at += len(piece)


def path_of(member: tarfile.TarInfo) -> bytes:
    """The path of a member from the root of the layer; empty for the root.

    Raises:
        DamagedError: it leads out of the tree, or is none.
    """
    return clean(_bytes(member.name))


def clean(name: bytes) -> bytes:
    """A name without what means nothing: a slash in front, as of the root of the layer, `.` and empty parts.

    Raises:
        DamagedError: it holds `..`, or a NUL.
    """
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts or b"\0" in name:
        raise DamagedError("its name leads out of the tree")
    return b"/".join(parts)


def link_of(member: tarfile.TarInfo) -> bytes:
    """Where a link leads, as it stands there."""
    return _bytes(member.linkname)


def mtime_of(member: tarfile.TarInfo) -> int:
    """Time of modification in nanoseconds."""
    text = member.pax_headers.get("mtime")
    try:
        seconds = Decimal(text) if text else Decimal(int(member.mtime))
    except InvalidOperation:
        raise DamagedError("a time is none") from None
    if not seconds.is_finite() or abs(seconds) >= _LARGEST_TIME:
        raise DamagedError("a time is none")
    return int(seconds * 10**9)


def xattrs_of(member: tarfile.TarInfo) -> dict[bytes, bytes]:
    """The extended attributes of a member."""
    return {
        _bytes(keyword.removeprefix(_XATTR)): _bytes(value)
        for keyword, value in member.pax_headers.items()
        if keyword.startswith(_XATTR)
    }


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
