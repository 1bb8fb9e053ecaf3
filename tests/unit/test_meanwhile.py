"""What happens between the steps of a long operation: the tree that is copied up for a rename changes meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.support.inprocess import InProcess, in_process


@pytest.fixture(params=[True, False], ids=["devices", ".wh. files"])
def layers(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bool]:
    lower = tmp_path / "lower"
    for directory in ("d/a", "d/b/deep", "d/c", "other"):
        (lower / directory).mkdir(parents=True)
    for name in ("d/one", "d/two", "d/a/f", "d/b/f", "d/b/deep/f", "d/c/f"):
        (lower / name).write_text(name)
    (lower / "d/linked").write_text("linked")
    os.link(lower / "d/linked", lower / "other/linked")
    (tmp_path / "upper").mkdir()
    (tmp_path / "work").mkdir()
    return tmp_path, request.param


def _opened(layers: tuple[Path, bool]) -> AbstractContextManager[InProcess]:
    base, devices = layers
    return in_process([base / "lower"], base / "upper", base / "work", allow_devices=devices)


@contextmanager
def _copying(union: InProcess, path: str) -> Iterator[Iterator[str]]:
    """Copy a tree up, file by file; the block goes on between two files."""
    preparation = union.union.make_movable(union.find(path))

    def steps() -> Iterator[str]:
        for files in preparation:
            for file in files or ():
                yield ",".join(sorted(os.fsdecode(name) for _, name in file.names()))
                union.copy(file)

    try:
        yield steps()
    finally:
        preparation.close()


def test_directories_that_go_meanwhile(layers: tuple[Path, bool]) -> None:
    """A subdirectory that is emptied and removed while others are copied is gone after the rename, and no error."""
    with _opened(layers) as union:
        with _copying(union, "/d") as steps:
            next(steps)
            for directory in ("/d/a", "/d/b/deep", "/d/b"):
                union.unlink(f"{directory}/f")
                union.rmdir(directory)
            union.mkdir("/d/c/new")
            for _ in steps:
                pass
        union.rename("/d", "/moved")
        expected = {"/moved", "/moved/one", "/moved/two", "/moved/linked", "/moved/c", "/moved/c/f", "/moved/c/new"}
        assert set(union.tree()) == expected | {"/other", "/other/linked"}
        union.forget()
        assert union.union.state.table.size == 1
    with _opened(layers) as union:
        assert set(union.tree()) == expected | {"/other", "/other/linked"}


def test_a_linked_name_that_goes_meanwhile(layers: tuple[Path, bool]) -> None:
    """A name of a hard link that is deleted after its file was copied, before it got its own link, stays deleted."""
    with _opened(layers) as union:
        union.find("/other/linked")
        with _copying(union, "/d") as steps:
            for names in steps:
                if "linked" in names:
                    union.unlink("/d/linked")
        assert "/d/linked" not in union.tree()
        union.rename("/d", "/moved")
        assert "/moved/linked" not in union.tree()
        assert union.read("/other/linked") == b"linked"
        union.create("/moved/linked", b"another")
    with _opened(layers) as union:
        assert union.read("/moved/linked") == b"another"
        assert union.read("/other/linked") == b"linked"


def test_a_name_that_means_another_file_meanwhile(layers: tuple[Path, bool]) -> None:
    """What was made under the name of a file that is being copied is what moves."""
    with _opened(layers) as union:
        with _copying(union, "/d") as steps:
            for names in steps:
                name = names.split(",")[0]
                if name in ("one", "linked"):
                    union.unlink(f"/d/{name}")
                    union.create(f"/d/{name}", b"new")
        union.rename("/d", "/moved")
        assert union.read("/moved/one") == b"new"
        assert union.read("/moved/linked") == b"new"
    with _opened(layers) as union:
        assert union.read("/moved/one") == b"new"
        assert union.read("/other/linked") == b"linked"
