"""A file that is there when it is complete, and the standard output."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fuseunion.errors import ExitCode, UserError
from fuseunion.offline.archive.compression import Compression, Compressor

STDOUT = "-"


class Measured:
    """Hands on what is written to it, and keeps its SHA-256 and size.

    Args:
        write: takes the bytes.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Hand on some bytes."""
        self._hash.update(data)
        self.size += len(data)
        self._write(data)

    @property
    def digest(self) -> str:
        """As container images write it."""
        return f"sha256:{self._hash.hexdigest()}"


class Blob:
    """A layer on its way out: what is written is compressed.

    Args:
        write: takes what comes out.

    Attributes:
        inside: measures what goes in; its digest is the diff-id of the layer.
        outside: measures what comes out; its digest is that of the blob.
    """

    def __init__(self, compression: Compression, write: Callable[[bytes], object]) -> None:
        self.compression = compression
        self.outside = Measured(write)
        self._compressor = Compressor(compression, self.outside.write)
        self.inside = Measured(self._compressor.write)

    @property
    def write(self) -> Callable[[bytes], None]:
        """Takes the bytes of the layer."""
        return self.inside.write

    def finish(self) -> None:
        """Write what the compressor has left."""
        self._compressor.finish()


@contextmanager
def written(path: str) -> Iterator[Callable[[bytes], object]]:
    """What takes the bytes of a file, which has its name once the block has ended well.

    What is there and no regular file (a FIFO, /dev/null) is written to as it is.

    Args:
        path: `-` for the standard output.

    Raises:
        UserError: USAGE for a terminal; FAILURE where the reader of the standard output has gone; OSError: it cannot be
            written.
    """
    if path == STDOUT:
        if sys.stdout.isatty():
            raise UserError("an archive is nothing for a terminal; give a file with -o, or a pipe")
        try:
            yield sys.stdout.buffer.write
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            # Of a listing one may read the beginning alone; a part of an archive is none.
            message = "the standard output was closed before the archive was complete"
            raise UserError(message, ExitCode.FAILURE) from None
        return
    try:
        special = not stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        special = False
    if special:
        with _opened(path) as write:
            yield write
        return
    given, path = path, os.path.realpath(path)
    parent, name = os.path.split(path)
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{name[:200]}.", dir=parent)
    except OSError as error:
        raise UserError(f"'{given}' cannot be made: {error.strerror}", ExitCode.FAILURE) from None
    try:
        with os.fdopen(fd, "wb", buffering=1 << 20) as file:
            yield file.write
            file.flush()
            os.fchmod(fd, 0o666 & ~_umask())
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def _opened(path: str) -> Iterator[Callable[[bytes], object]]:
    if os.path.isdir(path):
        raise UserError(f"'{path}' is a directory; give the name of a file with -o", ExitCode.LAYERS)
    with open(path, "wb") as file:
        yield file.write


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
