"""fsync and syncfs: what was changed is on disk as it was changed."""

from __future__ import annotations

import os
import stat

from tests.support import libc
from tests.support.arena import Arena
from tests.support.layers import OLD, File


def test_sync_of_copied_and_new_files(arena: Arena) -> None:
    """After fsync the upper holds data and attributes; directories and the whole mount can be synced too."""
    lower = arena.lower({"d/f": File(b"data"), "d/untouched": File(b"u")})
    with arena.mount(lower) as mount:
        with open(mount / "d/f", "r+b", buffering=0) as file:
            file.seek(0, os.SEEK_END)
            file.write(b"+")
            os.fchmod(file.fileno(), 0o640)
            os.utime(file.fileno(), ns=(OLD, OLD))
            os.fsync(file.fileno())
            os.fdatasync(file.fileno())
            status = (arena.upper / "d/f").stat()
            assert (status.st_size, stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (5, 0o640, OLD)
        with open(mount / "d/untouched", "rb") as file:
            os.fsync(file.fileno())
        directory = os.open(mount / "d", os.O_RDONLY)
        os.fsync(directory)
        libc.syncfs(directory)
        os.close(directory)
    assert not (arena.upper / "d/untouched").exists()
