"""Renames that take two system calls (rename.renamed_at_once), and those that must not be made like that."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from tests.support.inprocess import InProcess, in_process


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    for name in ("lower/merged", "upper/merged", "upper/own", "work"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lower/merged/lower").write_bytes(b"lower")
    (tmp_path / "upper/own/file").write_bytes(b"own")
    return tmp_path


@pytest.fixture
def inside(layers: Path) -> Iterator[InProcess]:
    with in_process([layers / "lower"], layers / "upper", layers / "work") as union:
        yield union


def _renamed(inside: InProcess, old: str, new: str) -> bool:
    (one, name), (other, new_name) = inside._split(old), inside._split(new)
    return inside.union.renamed_at_once(one, name, other, new_name)


@pytest.mark.parametrize(("old", "new"), [("own/new", "own/x"), ("merged/new", "merged/x"), ("merged/new", "own/x")])
def test_a_file_that_was_made_here(inside: InProcess, layers: Path, old: str, new: str) -> None:
    inside.create(old, b"new")
    file = inside.find(old)
    assert isinstance(file, File)
    assert _renamed(inside, old, new)
    assert not (layers / "upper" / old).exists()
    assert (layers / "upper" / new).read_bytes() == b"new"
    assert inside.find(new) is file
    directory, name = inside._split(new)
    assert list(file.names()) == [(directory, name)]
    with pytest.raises(FileNotFoundError):
        inside.find(old)
    assert inside.read(new) == b"new"


def test_a_file_that_was_there(inside: InProcess) -> None:
    inside.find("own/file")
    assert _renamed(inside, "own/file", "own/x")
    assert inside.read("own/x") == b"own"


def _copied(inside: InProcess, _layers: Path) -> tuple[str, str]:
    inside.copied("merged/lower")
    return "merged/lower", "merged/x"


def _over_lower(inside: InProcess, _layers: Path) -> tuple[str, str]:
    inside.create("merged/new", b"new")
    return "merged/new", "merged/lower"


def _over_known(inside: InProcess, _layers: Path) -> tuple[str, str]:
    inside.create("own/new", b"new")
    inside.find("own/file")
    return "own/new", "own/file"


def _over_what_came(inside: InProcess, layers: Path) -> tuple[str, str]:
    inside.create("own/new", b"new")
    (layers / "upper/own/came").write_bytes(b"came")
    return "own/new", "own/came"


def _over_a_whiteout(inside: InProcess, _layers: Path) -> tuple[str, str]:
    inside.find("merged/lower")
    inside.unlink("merged/lower")
    inside.create("merged/new", b"new")
    return "merged/new", "merged/lower"


def _where_a_lower_shows(inside: InProcess, _layers: Path) -> tuple[str, str]:
    inside.find("merged/lower")
    inside.unlink("merged/lower")
    inside.create("merged/lower", b"new")
    return "merged/lower", "merged/x"


def _exchanged(inside: InProcess, layers: Path) -> tuple[str, str]:
    inside.find("own/file")
    (layers / "upper/own/file").rename(layers / "upper/away")
    (layers / "upper/own/file").write_bytes(b"of somebody else")
    return "own/file", "own/x"


def _directory(inside: InProcess, _layers: Path) -> tuple[str, str]:
    inside.mkdir("own/directory")
    return "own/directory", "own/x"


def _lower(inside: InProcess, _layers: Path) -> tuple[str, str]:
    inside.find("merged/lower")
    return "merged/lower", "merged/x"


def _reserved(inside: InProcess, _layers: Path) -> tuple[str, str]:
    inside.create("own/new", b"new")
    return "own/new", "own/.wh.x"


def _too_long(inside: InProcess, _layers: Path) -> tuple[str, str]:
    inside.create("own/new", b"new")
    return "own/new", "own/" + "x" * 256


def _not_looked_up(_inside: InProcess, _layers: Path) -> tuple[str, str]:
    return "own/file", "own/x"


OTHERS: list[Callable[[InProcess, Path], tuple[str, str]]] = [
    *(_copied, _over_lower, _over_known, _over_what_came, _over_a_whiteout, _where_a_lower_shows, _exchanged),
    *(_directory, _lower, _reserved, _too_long, _not_looked_up),
]


@pytest.mark.parametrize("case", OTHERS)
def test_others_change_nothing(
    inside: InProcess, layers: Path, case: Callable[[InProcess, Path], tuple[str, str]]
) -> None:
    old, new = case(inside, layers)
    directory, name = inside._split(old)
    assert isinstance(directory, Directory)
    before = directory.children.get(name)
    names = sorted(path.relative_to(layers) for path in layers.rglob("*"))
    assert not _renamed(inside, old, new)
    assert directory.children.get(name) is before
    assert sorted(path.relative_to(layers) for path in layers.rglob("*")) == names


def test_where_the_filesystem_does_not_know_the_flag(inside: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    inside.find("own/file")
    work = inside.union.state.writable().work
    monkeypatch.setattr(work, "capabilities", work.capabilities._replace(noreplace=False))
    assert not _renamed(inside, "own/file", "own/x")


def test_a_number_outlives_a_rename_and_a_mount(layers: Path) -> None:
    """A copy has a mark of its lower's place, which is completed before it leaves; what was made here has none."""
    with in_process([layers / "lower"], layers / "upper", layers / "work") as inside:
        number = inside.copied("merged/lower").ino
        inside.rename("merged/lower", "merged/x")
        inside.create("merged/new", b"new")
        made = inside.find("merged/new").ino
        inside.rename("merged/new", "merged/y")
        assert os.listxattr(layers / "upper/merged/y") == []
    with in_process([layers / "lower"], layers / "upper", layers / "work") as inside:
        assert (inside.find("merged/x").ino, inside.find("merged/y").ino) == (number, made)
