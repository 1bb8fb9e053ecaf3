"""What tools ask of a union beyond the system calls: whole entries, links completed on request, inodes held."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.union import Union
from tests.support.inprocess import InProcess, in_process


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    lower = tmp_path / "lower"
    (lower / "file").write_bytes(b"lower")
    (lower / "one").write_bytes(b"linked")
    os.link(lower / "one", lower / "two")
    (lower / "dir" / "sub").mkdir(parents=True)
    (lower / "dir" / "sub" / "deep").write_bytes(b"deep")
    return tmp_path


@pytest.fixture(params=[True, False], ids=["devices", "files"])
def opened(base: Path, request: pytest.FixtureRequest) -> Iterator[InProcess]:
    with in_process([base / "lower"], base / "upper", base / "work", allow_devices=request.param) as union:
        yield union
        left = [path.lstat() for path in (base / "work" / "work").iterdir()]
        assert all(stat.S_ISCHR(st.st_mode) and st.st_rdev == 0 for st in left), "only the spare whiteout stays"


def writes(data: bytes) -> Callable[[RealDir, bytes], None]:
    """What `Union.put` asks for: makes a file that holds `data`."""

    def make(directory: RealDir, name: bytes) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=directory.fd())
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    return make


def file_of(union: Union, name: bytes) -> File:
    found = union.lookup(union.root, name)
    assert isinstance(found, File)
    return found


@pytest.mark.parametrize("before", ["nothing", "lower", "upper", "whiteout"])
def test_an_object_is_put_in_the_place_of_any_file(opened: InProcess, before: str) -> None:
    union = opened.union
    name = "new" if before == "nothing" else "file"
    if before == "upper":
        opened.write("/file", b"upper")
    elif before == "whiteout":
        opened.unlink("/file")
    union.put(union.root, name.encode(), writes(b"put"))
    assert opened.read(f"/{name}") == b"put"
    opened.unlink(f"/{name}")
    assert name not in opened.names("/")


def test_who_has_the_replaced_file_open_keeps_it(opened: InProcess) -> None:
    union = opened.union
    opened.write("/file", b"upper")
    handle = union.open(file_of(union, b"file"), os.O_RDONLY)
    union.put(union.root, b"file", writes(b"put"))
    assert os.pread(handle.fd, 10, 0) == b"upper"
    union.release_file(handle)
    assert opened.read("/file") == b"put"


def test_a_directory_is_not_replaced_by_an_object(opened: InProcess) -> None:
    with pytest.raises(IsADirectoryError):
        opened.union.put(opened.union.root, b"dir", writes(b"put"))
    assert opened.read("/dir/sub/deep") == b"deep"


def test_what_cannot_be_made_changes_nothing(opened: InProcess, base: Path) -> None:
    def fail(directory: RealDir, name: bytes) -> None:
        writes(b"half")(directory, name)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space"):
        opened.union.put(opened.union.root, b"file", fail)
    assert opened.read("/file") == b"lower"
    assert os.listdir(base / "upper") == []


@pytest.mark.parametrize("target", ["new", "file", "two"])
def test_a_file_is_linked_over_another(opened: InProcess, base: Path, target: str) -> None:
    union = opened.union
    opened.create("/mine", b"mine")
    union.link_over(file_of(union, b"mine"), union.root, target.encode())
    assert opened.read(f"/{target}") == b"mine"
    assert opened.find(f"/{target}") is opened.find("/mine")
    assert os.path.samefile(base / "upper" / target, base / "upper" / "mine")
    union.link_over(file_of(union, b"mine"), union.root, target.encode())  # it is there
    assert union.stat(file_of(union, b"mine"))[1] == 2


@pytest.mark.parametrize("changed", [False, True])
def test_a_directory_is_removed_with_all_that_is_in_it(opened: InProcess, changed: bool) -> None:
    union = opened.union
    if changed:
        opened.create("/dir/sub/new")
        opened.unlink("/dir/sub/deep")
    opened.forget()
    union.remove(union.root, b"dir")
    assert union.lookup(union.root, b"dir") is None
    opened.mkdir("/dir")
    assert opened.names("/dir") == []


def test_what_is_not_there_cannot_be_removed(opened: InProcess) -> None:
    with pytest.raises(FileNotFoundError):
        opened.union.remove(opened.union.root, b"missing")


def test_what_a_whiteout_hides_can_be_uncovered(opened: InProcess) -> None:
    union = opened.union
    opened.unlink("/file")
    assert union.lookup(union.root, b"file") is None
    lower = union.lower_stat(union.root, b"file")
    assert lower is not None and lower.st_size == 5
    union.uncover(union.root, b"file")
    assert opened.read("/file") == b"lower"


def test_uncovering_removes_nothing_but_whiteouts(opened: InProcess) -> None:
    opened.write("/file", b"upper")
    opened.union.uncover(opened.union.root, b"file")
    assert opened.read("/file") == b"upper"


def test_the_lowers_are_seen_beneath_the_upper(opened: InProcess) -> None:
    union = opened.union
    opened.create("/new")
    assert union.lower_stat(union.root, b"new") is None
    st = union.lower_stat(union.root, b"dir")
    assert st is not None and stat.S_ISDIR(st.st_mode)


def test_marks_cannot_be_stored(opened: InProcess) -> None:
    st = os.stat("/dev/null")
    opened.union.check_storable(b"null", st)
    with pytest.raises(OSError, match="Invalid") as refused:
        opened.union.check_storable(b".wh.null", st)
    assert refused.value.errno == errno.EINVAL
    device = os.stat_result((stat.S_IFCHR | 0o600, *st[1:]), {"st_rdev": 0})
    with pytest.raises(PermissionError):
        opened.union.check_storable(b"null", device)


def test_a_lookup_writes_nothing_and_a_link_is_completed_on_request(base: Path) -> None:
    with in_process([base / "lower"], base / "upper", base / "work") as union:
        union.write("/one", b"LINKED")
        assert os.listdir(base / "upper") == ["one"]
    with in_process([base / "lower"], base / "upper", base / "work") as first:
        union = first.union
        found = union.lookup(union.root, b"two")
        assert isinstance(found, File) and found.in_upper
        assert os.listdir(base / "upper") == ["one"]
        union.complete_links(found, union.root, b"two")
        assert os.path.samefile(base / "upper" / "one", base / "upper" / "two")
        union.complete_links(found, union.root, b"two")  # it is there
        assert union.stat(found)[1] == 2


def test_an_inode_is_held_for_a_block(opened: InProcess) -> None:
    union = opened.union
    found = union.lookup(union.root, b"dir")
    assert isinstance(found, Directory)
    with union.held(found, None):
        union.release(found)
        assert union.inode(found.ino) is found
    with pytest.raises(OSError, match="Stale"):
        union.inode(found.ino)


def test_a_file_is_copied_up_at_once(opened: InProcess, base: Path) -> None:
    union = opened.union
    file = file_of(union, b"file")
    union.copy_up(file)
    assert file.in_upper and (base / "upper" / "file").read_bytes() == b"lower"
    union.copy_up(file)  # there is nothing left to do
