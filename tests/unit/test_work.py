"""The work directory after a crash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("name", ["#" + "f" * 254, "#ffffffffffffffff", "#-5", "#1_0", "# 7"])
def test_a_name_of_no_number_is_removed_and_in_no_way(tmp_path: Path, name: str) -> None:
    (tmp_path / "work" / name / "inner").mkdir(parents=True)
    work = _open(tmp_path)
    try:
        assert os.listdir(tmp_path / "work") == []
        new = work.new_name()
        assert len(new) < 20 and new.startswith(b"#") and new[1:].isalnum()
    finally:
        work.close()
