"""The daemon never looks through all that it knows for garbage (engines/fuse/daemon.py): so there may be none."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.inprocess import in_process


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nothing is collected but by the test."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_operations_leave_no_cycles(tmp_path: Path, uncollected: None) -> None:
    for name in ("lower/d/sub", "upper", "work"):
        (tmp_path / name).mkdir(parents=True)
    for number in range(50):
        (tmp_path / f"lower/d/sub/{number}").write_text("lower")
    with in_process([tmp_path / "lower"], tmp_path / "upper", tmp_path / "work") as union:
        gc.collect()
        for number in range(5):
            union.write(f"/d/sub/{number}", b"upper")
            union.unlink(f"/d/sub/{number + 5}")
            union.create(f"/d/sub/new{number}", b"new")
            union.link(f"/d/sub/new{number}", f"/d/sub/link{number}")
            with contextlib.suppress(OSError):
                union.rmdir("/d/sub")
            with contextlib.suppress(OSError):
                union.find("/d/missing")
        union.rename("/d/sub", "/moved")
        assert len(union.tree()) == 57
        union.forget()
        assert union.union.state.table.size == 1
        assert gc.collect() == 0
