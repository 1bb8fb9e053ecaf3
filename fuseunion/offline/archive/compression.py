"""Compressed streams, by the end of a file's name when it is written, by its first bytes when it is read.

gzip is Python's. zstd is the package `zstandard`, an extra: Python has its own only from 3.14 on, and a program beside
would have to be found, fed and watched (docs/decisions.md).
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from enum import Enum
from typing import Any, BinaryIO, cast

from fuseunion.errors import ExitCode, UserError

_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_GZIP_LEVEL, _ZSTD_LEVEL = 6, 3
_GZIP_WINDOW = 31
"""zlib: 15 bits, and 16 for the gzip form."""

_ZSTD_WINDOW = 1 << 27
"""Bytes: as much as zstd(1) takes without being asked for more."""

Write = Callable[[bytes], object]


class Compression(Enum):
    """How a stream is compressed; the value is the end of the name, and of the media type in an image."""

    NONE = ""
    GZIP = ".gz"
    ZSTD = ".zst"

    @classmethod
    def of_name(cls, name: str) -> Compression:
        """As the name of a file says."""
        return next((each for each in (cls.GZIP, cls.ZSTD) if name.endswith(each.value)), cls.NONE)


class Compressor:
    """Compresses what is written to it; the same bytes always become the same bytes.

    Args:
        write: takes what is compressed.
    """

    def __init__(self, compression: Compression, write: Write) -> None:
        self._write = write
        self._stream: Any = None
        if compression is Compression.GZIP:
            # No name and no time in the header.
            self._stream = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        elif compression is Compression.ZSTD:
            self._stream = _zstandard().ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj()

    def write(self, data: bytes) -> None:
        """Compress some more."""
        self._write(data if self._stream is None else self._stream.compress(data))

    def finish(self) -> None:
        """Write what is left."""
        if self._stream is not None:
            self._write(self._stream.flush())


def decompressed(source: io.BufferedReader) -> BinaryIO:
    """A stream to read from, decompressed where its first bytes say so. A little is decompressed at a time, however
    much a few bytes stand for.

    Its `read` raises EOFError or OSError for what is damaged.

    Args:
        source: read from where it is.

    Raises:
        UserError: UNAVAILABLE for zstd without its package.
    """
    first = source.peek(4)[:4]
    if first.startswith(_GZIP_MAGIC):
        return cast(BinaryIO, gzip.GzipFile(fileobj=source, mode="rb"))
    if first == _ZSTD_MAGIC:
        reader = (
            _zstandard().ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(source, read_across_frames=True)
        )
        return cast(BinaryIO, reader)
    return source


def is_damage(error: Exception) -> bool:
    """Whether reading failed because the compressed data is not what it should be."""
    return isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile)) or type(error).__name__ == "ZstdError"


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise UserError(
            "zstd needs the Python package 'zstandard', which is not here; install it (pip install 'fuseunion[zstd]', "
            "or apt install python3-zstandard), or use gzip",
            ExitCode.UNAVAILABLE,
        ) from None
    return zstandard
