"""What a file that the kernel knows takes in memory. The benchmark's row `memory` measures the whole of a daemon."""

from __future__ import annotations

import errno
import gc
import tracemalloc
from pathlib import Path

import pytest

from fuseunion.core.format import xattr_names
from fuseunion.engines.fuse.wire.entries import Entries
from tests.support.inprocess import in_process

FILES = 2_000

LIMIT = 560
"""Bytes, with a name of ten, in a dictionary of its directory and in that of the inodes."""


def test_a_known_file_is_small(tmp_path: Path) -> None:
    """One of a lower, with its answer, and without the attributes that the kernel always asks for."""
    lower, upper, work = (tmp_path / name for name in ("lower", "upper", "work"))
    for directory in (lower, upper, work):
        directory.mkdir()
    names = [b"file%06d" % number for number in range(FILES)]
    for name in names:
        (lower / name.decode()).touch()
    del names
    with in_process([lower], upper, work) as driven:
        union = driven.union
        entries = Entries(union, 1e9)
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for number in range(FILES):
                inode = union.lookup(union.root, b"file%06d" % number)
                assert inode is not None
                union.remember(inode)
                entries.attributes(inode)
                with pytest.raises(OSError) as caught:
                    union.getxattr(inode, xattr_names.CAPABILITY)
                assert caught.value.errno == errno.ENODATA
            del inode, caught
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (after - before) / FILES < LIMIT
