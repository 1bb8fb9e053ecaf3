"""What lowers that may not answer are asked about ahead: what the operation is going to ask them for, and no more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseunion.core.disk import remote
from fuseunion.core.disk.remote import Asked
from fuseunion.linux import mountinfo, syscalls
from tests.support.inprocess import InProcess, in_process
from tests.support.layers import Dir, File, Opaque, Symlink, Whiteout, build


@pytest.fixture
def union(tmp_path: Path) -> Iterator[InProcess]:
    """A lower that always answers, above one that may not."""
    near = {
        "dir/near": File(b"near"),
        "dir/both": File(b"near"),
        "dir/hidden": Whiteout(),
        "dir/merged": Dir(),
        "dir/opaque": Opaque(),
        "alone": Dir(),
    }
    far = {
        "dir/both": File(b"far"),
        "dir/far": File(b"far"),
        "dir/hidden": File(b"far"),
        "dir/merged/below": File(b"below"),
        "dir/opaque/below": File(b"below"),
        "dir/link": Symlink("far"),
    }
    lowers = [build(tmp_path / "near", near), build(tmp_path / "far", far)]
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    with in_process(lowers, tmp_path / "upper", tmp_path / "work") as made:
        made.union.lowers[1].remote = True
        yield made


def _asked(union: InProcess, path: str, name: str = "", *, whole: bool = False) -> list[str]:
    """The paths in the far lower that are asked for."""
    number = union.find(path).ino if path else union.union.root.ino
    parts = union.union.remote_parts(number, name.encode(), whole=whole)
    return [os.path.join(os.fsdecode(part.directory), os.fsdecode(part.name)) for part in parts]


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("near", []),
        ("both", []),
        ("hidden", []),
        ("opaque", []),
        ("far", ["dir/far"]),
        ("merged", ["dir/merged"]),
        ("missing", ["dir/missing"]),
    ],
)
def test_a_lookup_asks_for_what_is_not_decided_above(union: InProcess, name: str, asked: list[str]) -> None:
    assert _asked(union, "dir", name) == asked
    assert _asked(union, "dir", name, whole=True) == [f"dir/{name}"]


def test_a_directory_of_others_asks_nobody(union: InProcess) -> None:
    assert _asked(union, "alone", "missing", whole=True) == []
    assert _asked(union, "alone", whole=True) == []


def test_a_name_that_is_known_is_not_asked_for(union: InProcess) -> None:
    union.find("dir/near")
    union.find("dir/merged")
    assert _asked(union, "dir", "near") == []
    assert _asked(union, "dir", "merged") == []
    union.find("dir/far")
    assert _asked(union, "dir", "far") == ["dir/far"], "its attributes may be"


def test_an_inode(union: InProcess) -> None:
    assert _asked(union, "") == []
    assert _asked(union, "", whole=True) == ["./"]
    assert _asked(union, "dir/far") == ["dir/far"]
    assert _asked(union, "dir/near") == []
    union.copied("dir/far")
    assert _asked(union, "dir/far") == []


def _place(union: InProcess, path: str) -> Asked:
    (part,) = union.union.remote_parts(union.find(path).ino, b"", whole=False)
    return part


def test_what_is_opened_is_a_regular_file(union: InProcess, tmp_path: Path) -> None:
    place = _place(union, "dir/far")
    fd = place.open()
    assert fd is not None
    assert os.read(fd, 10) == b"far"
    os.close(fd)
    assert _place(union, "dir/link").open() is None
    (tmp_path / "far/dir/far").unlink()
    os.mkfifo(tmp_path / "far/dir/far")
    assert place.open() is None
    (tmp_path / "far/dir/far").unlink()
    assert place.open() is None
    place.look(opens=True, lists=True)


def test_no_link_leads_away(union: InProcess, tmp_path: Path) -> None:
    """Whoever owns the lower exchanges a directory on the way."""
    place = _place(union, "dir/far")
    (tmp_path / "far/dir").rename(tmp_path / "elsewhere")
    (tmp_path / "far/dir").symlink_to(tmp_path / "elsewhere")
    assert place.open() is None


@pytest.mark.parametrize(
    ("kind", "fstype", "expected"),
    [
        (0xEF53, "ext4", False),
        (0x01021994, "tmpfs", False),
        (0x6969, "nfs4", True),
        (0x0BD00BD0, "lustre", True),
        (0x65735546, "fuse.sshfs", True),
        (0x65735546, "fuse", True),
        (0x65735546, None, True),
        (0, "fuse.cvmfs2", True),
        (0x65735546, "fuse.fuseunion", False),
        (0x65735546, "fuse.squashfuse_ll", False),
    ],
)
def test_which_filesystems_are_remote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, fstype: str | None, expected: bool
) -> None:
    monkeypatch.setattr(syscalls, "filesystem_type", lambda _fd: kind)
    monkeypatch.setattr(mountinfo, "filesystem_type", lambda _device: fstype)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert remote.is_remote(fd) is expected
    finally:
        os.close(fd)
