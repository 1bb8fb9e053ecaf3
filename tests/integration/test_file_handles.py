"""File handles: a handle that could not be opened later is not given out (open_by_handle_at(2))."""

from __future__ import annotations

import errno
import os

import pytest

from fuseunion.linux import syscalls
from tests.support.arena import Arena
from tests.support.layers import File


def test_no_handles_are_given_out(arena: Arena) -> None:
    """name_to_handle_at answers EOPNOTSUPP (Linux 6.9 on), as on kernel overlayfs, for files, directories and links."""
    lower = arena.lower({"d/f": File(b"x")})
    with arena.mount(lower) as mount:
        for path in (mount.merged, mount / "d", mount / "d/f"):
            with pytest.raises(OSError) as caught:
                syscalls.name_to_handle_at(syscalls.AT_FDCWD, os.fsencode(path), 0)
            assert caught.value.errno == errno.EOPNOTSUPP
