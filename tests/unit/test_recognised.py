"""A file is recognised whenever its name is used again: what was put in its place answers ESTALE and is not touched."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuseunion.core.ops.attributes import Change
from fuseunion.core.tree.file import File
from tests.support.inprocess import InProcess, in_process

PATHS = ["upper", "lower"]


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    for name in PATHS:
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    (tmp_path / "work").mkdir()
    (tmp_path / "foreign").write_text("foreign")
    return tmp_path


@pytest.fixture
def union(layers: Path) -> Iterator[InProcess]:
    with in_process([layers / "lower"], layers / "upper", layers / "work") as opened:
        yield opened


MAKERS: dict[str, Callable[[Path], object]] = {
    "link": lambda path: path.symlink_to(path.parent.parent / "foreign"),
    "file": lambda path: path.write_text("upper"),
    "fifo": os.mkfifo,
    "directory": os.mkdir,
}

CALLS: dict[str, Callable[[InProcess, str], object]] = {
    "chmod": lambda union, path: union.setattr(path, Change(mode=0o4755)),
    "chown": lambda union, path: union.setattr(path, Change(uid=os.geteuid(), gid=os.getegid())),
    "utimes": lambda union, path: union.setattr(path, Change(atime_ns=1, mtime_ns=1)),
    "truncate": lambda union, path: union.setattr(path, Change(size=1)),
    "setxattr": lambda union, path: union.setxattr(path, b"user.new", b"new"),
    "read": lambda union, path: union.read(path),
    "write": lambda union, path: union.write(path, b"written"),
    "link": lambda union, path: union.link(path, "/linked"),
}


def _exchange(path: Path, make: Callable[[Path], object]) -> None:
    make(path.with_name("new"))
    path.rename(path.with_name("old"))
    path.with_name("new").rename(path)


def _facts(path: Path) -> tuple[int, ...]:
    st = path.lstat()
    return st.st_mode, st.st_uid, st.st_gid, st.st_nlink, st.st_size, st.st_mtime_ns, st.st_ctime_ns


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("made", MAKERS)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_in_its_place_is_another(layers: Path, union: InProcess, call: str, made: str, path: str) -> None:
    union.find(path)
    place = layers / path / path
    _exchange(place, MAKERS[made])
    before = _facts(place), _facts(layers / "foreign")
    with pytest.raises(OSError) as caught:
        CALLS[call](union, path)
    assert caught.value.errno == errno.ESTALE
    assert (_facts(place), _facts(layers / "foreign")) == before
    assert os.listxattr(place, follow_symlinks=False) == []


def test_the_last_name_is_not_taken_from_another(layers: Path, union: InProcess) -> None:
    """What a user has open is held while its name goes: the object itself, not what has its name."""
    union.find("upper")
    _exchange(layers / "upper/upper", MAKERS["file"])
    with pytest.raises(OSError) as caught:
        union.unlink("upper")
    assert caught.value.errno == errno.ESTALE
    assert (layers / "upper/upper").exists()


def test_a_lower_that_numbers_its_objects_anew(layers: Path, union: InProcess) -> None:
    """All but the inode number is as it was: libfuse filesystems without use_ino, fs/fat."""
    file = union.find("lower")
    assert isinstance(file, File) and file.st is not None
    device, number = file.place.disk_id
    file._place = file.place._replace(number=number + 1)  # type: ignore[union-attr]
    assert union.read("lower") == b"lower"
    assert file.place.disk_id == (device, number)


@pytest.mark.parametrize("path", PATHS)
def test_reading_waits_for_nobody_after_it(layers: Path, union: InProcess, path: str) -> None:
    """The descriptor that stays open is an ordinary one: another FUSE filesystem would be told of O_NONBLOCK."""
    file = union.find(path)
    assert isinstance(file, File)
    handle = union.union.open(file, os.O_RDONLY)
    try:
        flags = fcntl.fcntl(handle.fd, fcntl.F_GETFL)
        assert not flags & os.O_NONBLOCK and flags & os.O_NOATIME
    finally:
        union.union.release_file(handle)


def test_a_lease_is_not_waited_for(layers: Path, union: InProcess) -> None:
    """Opening waits up to 45 seconds for somebody's lease to be given back, and with it would the whole mount."""
    file = union.find("upper")
    assert isinstance(file, File)
    with open(layers / "upper/upper", "rb") as leased:
        fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(leased, fcntl.F_SETOWN, 0)
        with pytest.raises(BlockingIOError):
            union.union.open(file, os.O_RDWR)
        fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    handle = union.union.open(file, os.O_RDWR)
    union.union.release_file(handle)
    assert stat.S_ISREG(file.kind)
