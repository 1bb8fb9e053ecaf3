"""What layers are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fuseunion.core.disk.realdir import RealDir


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The names that layers are asked for in the block."""
    asked: list[bytes] = []
    real = RealDir.stat

    def stat(self: RealDir, name: bytes) -> os.stat_result | None:
        asked.append(name)
        return real(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(RealDir, "stat", stat)
        yield asked
