"""A change that is made is answered as made, though the look at it afterwards fails for a moment."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio

from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.engines.fuse.pyfuse.operations import Operations
from fuseunion.engines.fuse.serving.requests import Requests
from tests.support.inprocess import in_process

CALLER: Any = SimpleNamespace(uid=0, gid=0, pid=1, umask=0)


def _fields(**wanted: bool) -> Any:
    names = ("mode", "uid", "gid", "size", "atime", "mtime")
    return SimpleNamespace(**{f"update_{name}": wanted.get(name, False) for name in names})


def _setattr(operations: Operations, file: File, **wanted: int) -> Any:
    attributes = pyfuse3.EntryAttributes()
    for name, value in wanted.items():
        setattr(attributes, f"st_{name}", value)
    fields = _fields(**dict.fromkeys(wanted, True))
    return lambda: operations.setattr(file.ino, attributes, fields, None, CALLER)


CHANGES: dict[str, Callable[[Operations, File], Any]] = {
    "chmod": lambda operations, file: _setattr(operations, file, mode=0o600),
    "truncate": lambda operations, file: _setattr(operations, file, size=1),
    "link": lambda operations, file: lambda: operations.link(file.ino, 1, b"second", CALLER),
}


@pytest.mark.parametrize("failures", [1, 2])
@pytest.mark.parametrize("change", sorted(CHANGES))
def test_after_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, failures: int) -> None:
    """Where it fails again, the caller gets the error and the kernel is told to ask anew."""
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    path = tmp_path / "upper" / "file"
    path.write_bytes(b"content")
    path.chmod(0o644)
    told: list[int] = []
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda ino, attr_only: told.append(ino))
    with in_process([tmp_path / "lower"], tmp_path / "upper", tmp_path / "work") as union:
        file = union.find("/file")
        assert isinstance(file, File)
        left = failures
        real = Union.stat

        def failing(self: Union, inode: Inode) -> tuple[os.stat_result, int]:
            nonlocal left
            seen = path.lstat()
            if left and (seen.st_mode & 0o7777, seen.st_size, seen.st_nlink) != (0o644, 7, 1):
                left -= 1
                raise OSError(errno.EIO, "no look")
            return real(self, inode)

        monkeypatch.setattr(Union, "stat", failing)
        operations = Operations(Requests(union.union))
        call = CHANGES[change](operations, file)
        if failures == 1:
            seen = trio.run(call)
            assert (seen.st_mode & 0o7777, seen.st_size, seen.st_nlink) == _now(path)
            assert not told
        else:
            with pytest.raises(pyfuse3.FUSEError) as caught:
                trio.run(call)
            assert caught.value.errno == errno.EIO
            assert told == [file.ino]
        assert not left, "nothing failed"
        assert _now(path) != (0o644, 7, 1)
        if change == "link" and failures == 1:
            union.union.forget(file.ino, 1)


def _now(path: Path) -> tuple[int, int, int]:
    st = path.lstat()
    return st.st_mode & 0o7777, st.st_size, st.st_nlink
