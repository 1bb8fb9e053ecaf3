"""A directory whose times could not be kept shows those that it has."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fuseunion.core.ops.attributes import Change
from fuseunion.linux.objects.real_object import RealObject
from tests.support.inprocess import InProcess, in_process

STEPS: dict[str, Callable[[InProcess], object]] = {
    "file": lambda union: union.copied("/d/file"),
    "directory": lambda union: union.mkdir("/d/sub/new"),
}


@pytest.mark.parametrize("step", sorted(STEPS))
def test_copied_up_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    (tmp_path / "lower/d/sub").mkdir(parents=True)
    (tmp_path / "lower/d/file").write_text("file")
    os.utime(tmp_path / "lower/d", ns=(1, 1))
    (tmp_path / "upper").mkdir()
    (tmp_path / "work").mkdir()
    with in_process([tmp_path / "lower"], tmp_path / "upper", tmp_path / "work") as union:
        directory = union.find("/d")
        union.setattr("/d", Change(mode=0o755))  # in the upper from now on
        before = union.union.stat(directory)[0].st_mtime_ns

        real, failed = RealObject.utime, []

        def failing(self: RealObject, atime_ns: int, mtime_ns: int) -> None:
            if os.path.samestat(os.fstat(self.fd), (tmp_path / "upper/d").stat()) and not self.name:
                failed.append(mtime_ns)
                raise OSError(errno.EIO, "no times")
            real(self, atime_ns, mtime_ns)

        monkeypatch.setattr(RealObject, "utime", failing)
        STEPS[step](union)
        assert failed == [1]
        shown = union.union.stat(directory)[0].st_mtime_ns
        assert shown == (tmp_path / "upper/d").stat().st_mtime_ns
        assert before == 1
