"""The work directory after a crash."""

from __future__ import annotations

import os
from pathlib import Path

from fuseunion.core.disk.work import WorkDirectory


def _open(path: Path) -> WorkDirectory:
    return WorkDirectory(os.open(path, os.O_RDONLY | os.O_DIRECTORY), str(path))


def test_trees_that_were_being_removed_are_removed(tmp_path: Path) -> None:
    """Subdirectories move to new names on their way out, which must not be those of what else was left."""
    for number in range(4):
        (tmp_path / f"work/#{number}/inner/deeper").mkdir(parents=True)
        (tmp_path / f"work/#{number}/inner/file").touch()
    (tmp_path / "work/another").mkdir()
    work = _open(tmp_path)
    try:
        assert os.listdir(tmp_path / "work") == []
        names = [work.new_name() for _ in range(3)]
        assert len(set(names)) == 3
    finally:
        work.close()
