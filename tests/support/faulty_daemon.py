"""A real mount whose daemon gets random errors from its system calls, now and then, while a test lets it.

    faults = Faults(directory, seed)
    with FuseunionMount(faults.place(arena.place), ...):
        faults.begin(0.02)
        ...
        faults.end()

Python imports `sitecustomize` when it starts (site(3)); a module of that name on the daemon's PYTHONPATH calls
`install` here. What is shared with the test is a page of memory: how likely an error is, and how many there were.
"""

from __future__ import annotations

import dataclasses
import errno
import mmap
import os
import random
import struct
from pathlib import Path
from typing import Any

from tests.support import tree
from tests.support.faults import Call, interpose
from tests.support.mounts import Place

ERRNOS = (errno.EIO, errno.ENOMEM, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EINTR)

INJECTED = frozenset({*ERRNOS, errno.ENFILE})
"""What a caller may be told of it; ENFILE where the daemon had no descriptor."""

TOLERATED = r"^(?!.*(?:Traceback|unexpected error|Exception))"
"""For FuseunionMount: every line but those of a bug. What could not be cleaned up, or taken back, is to be said."""

_CHANGES = frozenset({
    "chmod", "chown", "copy_file_range", "fchmod", "fchown", "fdatasync", "fsync", "ftruncate", "link", "mkdir",
    "mknod", "pwrite", "removexattr", "rename", "setxattr", "symlink", "unlink", "utime", "write", "renameat2",
    "ficlone",
})  # fmt: skip
_BY_DESCRIPTOR = frozenset({
    "fstat", "fsync", "fdatasync", "ftruncate", "pread", "preadv", "pwrite", "read", "write", "lseek",
    "copy_file_range",
})  # fmt: skip
_OPENS = frozenset({"open", "openat2", "listdir"})
_INTERRUPTED = frozenset({"openat2", "renameat2"})
"""Python makes a call of os again by itself after EINTR (PEP 475)."""
_CUT_SHORT = frozenset({"pwrite", "copy_file_range"})

_RATE = struct.Struct("=dQ")
_COUNTS = struct.Struct("=" + "Q" * (len(ERRNOS) + 1))


def _errnos_of(name: str) -> tuple[int, ...]:
    """What a call may answer (its manual page)."""
    found = [errno.EIO, errno.ENOMEM]
    if name not in _BY_DESCRIPTOR:
        found.append(errno.EACCES)
    if name in _CHANGES:
        found += [errno.ENOSPC, errno.EDQUOT]
    if name in _OPENS:
        found.append(errno.EMFILE)
    if name in _INTERRUPTED:
        found.append(errno.EINTR)
    return tuple(found)


class Faults:
    """The faults of one daemon, as the test sees them.

    :param directory: an existing one, which the daemon can reach; what it needs is written there
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory
        page = directory / "page"
        page.write_bytes(bytes(mmap.PAGESIZE))
        self._page = _mapped(page)
        hook = f"from tests.support.faulty_daemon import install\ninstall({str(page)!r}, {seed})\n"
        (directory / "sitecustomize.py").write_text(hook)

    def place(self, place: Place) -> Place:
        """The place of a test, but for commands that get errors."""
        path = f"{self._directory}:{place.interpreter.python_path}"
        return dataclasses.replace(place, interpreter=dataclasses.replace(place.interpreter, python_path=path))

    def begin(self, rate: float, gap: int = 0) -> None:
        """Let a share of all calls fail from now on.

        :param gap: so many calls after one that failed do not: enough to take back what was begun
        """
        _RATE.pack_into(self._page, 0, rate, gap)

    def end(self) -> None:
        """Let no more fail."""
        self.begin(0.0)

    def counts(self) -> dict[str, int]:
        """How many there were, by errno; `short` counts what was written in part."""
        names = [*(errno.errorcode[code] for code in ERRNOS), "short"]
        return dict(zip(names, _COUNTS.unpack_from(self._page, _RATE.size), strict=True))

    def close(self) -> None:
        """The test is over."""
        self._page.close()


def without_times(seen: tree.Tree) -> dict[bytes, tree.Entry]:
    """A tree without the times of directories.

    Where they cannot be kept at a copy-up, or something was made and taken back, that is logged and no error; and the
    kernel goes on showing what it has been told.
    """
    return {path: entry._replace(mtime=0) if entry.kind == "dir" else entry for path, entry in seen.items()}


def install(page_path: str, seed: int) -> None:
    """Called in the daemon, before it begins."""
    page, rng = _mapped(Path(page_path)), random.Random(seed)
    spared = 0

    def count(index: int) -> None:
        counts = list(_COUNTS.unpack_from(page, _RATE.size))
        counts[index] += 1
        _COUNTS.pack_into(page, _RATE.size, *counts)

    def wrapped(name: str, function: Call) -> Call:
        codes = _errnos_of(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal spared
            rate, gap = _RATE.unpack_from(page)
            spared -= 1
            if rate and spared < 0 and rng.random() < rate:
                spared = gap
                if name in _CUT_SHORT and rng.random() < 0.3:
                    count(len(ERRNOS))
                    return _in_part(name, function, args, kwargs)
                code = rng.choice(codes)
                count(ERRNOS.index(code))
                raise OSError(code, os.strerror(code))
            return function(*args, **kwargs)

        return call

    interpose(wrapped)


def _in_part(name: str, function: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Write the first half (write(2) and copy_file_range(2): fewer bytes than asked for, at least one)."""
    if name == "pwrite":
        fd, data, *rest = args
        return function(fd, bytes(data)[: max(1, len(data) // 2)], *rest, **kwargs)
    source, target, length, *rest = args
    return function(source, target, max(1, length // 2), *rest, **kwargs)


def _mapped(path: Path) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, mmap.PAGESIZE)
    finally:
        os.close(fd)
