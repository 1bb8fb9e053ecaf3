"""Stored ownership: the attribute store, the database store, and the choice between them."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuseunion.core.ownership import store_choice
from fuseunion.core.ownership.database_store import DatabaseStore, witness
from fuseunion.core.ownership.facts import DATABASE_FILE, Facts
from fuseunion.core.ownership.store import OwnershipStore
from fuseunion.core.ownership.stored_names import OverrideName
from fuseunion.core.ownership.xattr_store import XattrStore
from fuseunion.linux import syscalls
from fuseunion.linux.objects.real_object import RealObject

CONTAINERS = OverrideName.CONTAINERS


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def database(path: Path) -> Iterator[DatabaseStore]:
    with opened(path) as fd:
        store = DatabaseStore(fd)
    try:
        yield store
    finally:
        store.close()


_parents: list[int] = []


@pytest.fixture(autouse=True)
def parents_closed() -> Iterator[None]:
    yield
    _close_parents()


def _close_parents() -> None:
    while _parents:
        os.close(_parents.pop())


def at(path: Path) -> RealObject:
    """A name, until the test ends."""
    _parents.append(os.open(path.parent, os.O_PATH))
    return RealObject(_parents[-1], os.fsencode(path.name))


# -- stores ------------------------------------------------------------------------------------------------------

Make = Callable[[Path], OwnershipStore]


def _make_xattr(work: Path) -> OwnershipStore:
    with opened(work) as fd:
        return XattrStore(CONTAINERS, DatabaseStore(fd))


def _make_database(work: Path) -> OwnershipStore:
    with opened(work) as fd:
        return DatabaseStore(fd)


@pytest.fixture(params=[_make_xattr, _make_database], ids=["xattr", "database"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OwnershipStore]:
    work = tmp_path / "work"
    work.mkdir()
    made = request.param(work)
    yield made
    made.close()


def _object(directory: Path, kind: str) -> Path:
    path = directory / kind
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/nowhere/at/all")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(b"content")
    return path


@pytest.mark.parametrize("kind", ["file", "directory", "link", "fifo"])
def test_what_is_stored_is_loaded(store: OwnershipStore, tmp_path: Path, kind: str) -> None:
    path = _object(tmp_path, kind)
    real = path.lstat()
    assert store.load(at(path), real) is real
    value = Facts.of(real)._replace(uid=123, gid=456, mode=0o4755)
    store.store(at(path), real, value)
    assert store.find(at(path), path.lstat()) == value
    seen = store.load(at(path), path.lstat())
    assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (123, 456, 0o4755)
    assert path.lstat().st_uid == real.st_uid
    assert path.lstat().st_mode == real.st_mode


@pytest.mark.parametrize("kind", ["file", "link"])
def test_descriptors_of_any_kind_will_do(store: OwnershipStore, tmp_path: Path, kind: str) -> None:
    path = _object(tmp_path, kind)
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        store.change(RealObject(fd), os.fstat(fd), uid=5)
        assert store.load(RealObject(fd), os.fstat(fd)).st_uid == 5
    finally:
        os.close(fd)
    assert store.load(at(path), path.lstat()).st_uid == 5


def test_a_change_keeps_the_other_facts(store: OwnershipStore, tmp_path: Path) -> None:
    path = _object(tmp_path, "file")
    real = path.lstat()
    device = Facts(1, 2, 0o644, stat.S_IFBLK, os.makedev(8, 3))
    store.store(at(path), real, device)
    store.change(at(path), real, gid=9)
    assert store.find(at(path), real) == device._replace(gid=9)
    store.change(at(path), real, uid=7, mode=0o600)
    assert store.find(at(path), real) == device._replace(uid=7, gid=9, mode=0o600)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_rename_and_link_carry_the_facts_along(store: OwnershipStore, tmp_path: Path, kind: str) -> None:
    path = _object(tmp_path, kind)
    store.change(at(path), path.lstat(), uid=77)
    other = tmp_path / "other"
    os.link(path, other, follow_symlinks=False)
    moved = path.rename(tmp_path / "moved")
    for name in (other, moved):
        assert store.load(at(name), name.lstat()).st_uid == 77


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_forgotten_object_has_no_facts(store: OwnershipStore, tmp_path: Path, kind: str) -> None:
    path = _object(tmp_path, kind)
    real = path.lstat()
    store.change(at(path), real, uid=77)
    path.unlink()
    store.forget(real)
    again = _object(tmp_path, kind)
    assert store.find(at(again), again.lstat()) is None


def test_a_missing_object_is_missing(store: OwnershipStore, tmp_path: Path) -> None:
    path = _object(tmp_path, "file")
    real = path.lstat()
    store.change(at(path), real, uid=77)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        store.load(at(path), real)


# -- the attribute store -------------------------------------------------------------------------------------------


def test_the_attribute_is_what_containers_storage_writes(tmp_path: Path) -> None:
    path = _object(tmp_path, "file")
    XattrStore(CONTAINERS).store(at(path), path.lstat(), Facts(0, 5, 0o666, stat.S_IFCHR, os.makedev(1, 3)))
    assert os.getxattr(path, "user.containers.override_stat") == b"0:5:0666:char-1-3"


def test_without_a_companion_a_link_keeps_its_real_owner(tmp_path: Path) -> None:
    path = _object(tmp_path, "link")
    store = XattrStore(CONTAINERS)
    store.change(at(path), path.lstat(), uid=5)
    assert store.load(at(path), path.lstat()) == path.lstat()
    store.forget(path.lstat())
    store.sync()
    store.close()


def test_a_broken_attribute_is_an_error(tmp_path: Path) -> None:
    path = _object(tmp_path, "file")
    os.setxattr(path, "user.containers.override_stat", b"nonsense")
    with pytest.raises(OSError) as failed:
        XattrStore(CONTAINERS).load(at(path), path.lstat())
    assert failed.value.errno == errno.EINVAL


@pytest.mark.root
def test_the_privileged_attribute_holds_links_too(tmp_path: Path) -> None:
    path = _object(tmp_path, "link")
    store = XattrStore(OverrideName.PRIVILEGED)
    store.change(at(path), path.lstat(), uid=5)
    assert store.load(at(path), path.lstat()).st_uid == 5


# -- the database ------------------------------------------------------------------------------------------------


def test_the_database_outlives_the_mount_unless_empty(tmp_path: Path) -> None:
    path = _object(tmp_path, "file")
    with database(tmp_path) as store:
        store.change(at(path), path.lstat(), uid=5)
        store.sync()
        store.sync()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", DATABASE_FILE.decode()]
    with database(tmp_path) as store:
        assert store.load(at(path), path.lstat()).st_uid == 5
        assert not store.is_empty()
        store.forget(path.lstat())
        assert store.is_empty()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


_WRITER = """
import os, sys
from fuseunion.core.ownership.database_store import DatabaseStore
directory = sys.argv[1]
from fuseunion.linux.objects.real_object import RealObject
store_fd = os.open(directory, os.O_RDONLY)
store = DatabaseStore(store_fd)
for number in range(100):
    path = os.fsencode(f"{directory}/{number}")
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    store.change(RealObject(store_fd, b"%d" % number), os.lstat(path), uid=number)
print("stored", flush=True)
sys.stdin.read()
"""


def test_what_was_stored_survives_a_killed_daemon(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"stored\n"
        writer.kill()
    with database(tmp_path) as store:
        for number in range(100):
            path = tmp_path / str(number)
            assert store.load(at(path), path.lstat()).st_uid == number


def test_an_inode_number_used_again_has_no_facts(tmp_path: Path) -> None:
    old = _object(tmp_path, "file")
    new = _object(tmp_path, "fifo")
    with database(tmp_path) as store:
        # The row that an unseen deletion of `old` leaves, were its number given to `new`.
        store.store(at(old), new.lstat(), Facts(5, 5, 0o4755))
        assert store.find(at(new), new.lstat()) is None
        store.change(at(new), new.lstat(), uid=6)
        assert store.load(at(new), new.lstat()).st_uid == 6


def test_a_witness_is_the_objects_and_never_the_names(tmp_path: Path) -> None:
    one = _object(tmp_path, "file")
    two = _object(tmp_path, "link")
    assert witness(at(one))
    assert witness(at(one)) != witness(at(two))
    link = tmp_path / "hard"
    os.link(one, link)
    assert witness(at(link)) == witness(at(one))
    fd = os.open(two, os.O_PATH | os.O_NOFOLLOW)
    try:
        assert witness(RealObject(fd)) == witness(at(two))
    finally:
        os.close(fd)


def test_without_file_handles_the_birth_is_the_witness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(dirfd: int, path: bytes, flags: int) -> tuple[int, bytes]:
        raise OSError(errno.EOPNOTSUPP, "no handles")

    monkeypatch.setattr(syscalls, "name_to_handle_at", unsupported)
    one = _object(tmp_path, "file")
    assert witness(at(one)).startswith(b"birth ")
    assert witness(at(one)) != witness(at(_object(tmp_path, "link")))


def test_large_inode_numbers_fit(tmp_path: Path) -> None:
    path = _object(tmp_path, "file")
    real = path.lstat()
    huge = os.stat_result((real.st_mode, 2**64 - 7, *real[2:]))
    with database(tmp_path) as store:
        store.store(at(path), huge, Facts(1, 2, 0o600))
        assert store.find(at(path), huge) == Facts(1, 2, 0o600)
        assert store.find(at(path), real) is None


def test_a_file_that_is_no_database_is_an_io_error(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE.decode()).write_bytes(b"not a database " * 1000)
    with opened(tmp_path) as fd, pytest.raises(OSError) as failed:
        DatabaseStore(fd)
    assert failed.value.errno == errno.EIO


def test_another_format_is_refused(tmp_path: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(tmp_path / DATABASE_FILE.decode())
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with opened(tmp_path) as fd, pytest.raises(OSError) as failed:
        DatabaseStore(fd)
    assert failed.value.errno == errno.EIO


# -- the choice --------------------------------------------------------------------------------------------------


class Place:
    """An upper, a lower and a work area."""

    def __init__(self, base: Path) -> None:
        self.base = base
        for name in ("upper", "lower", "work"):
            (base / name).mkdir()

    def __getattr__(self, name: str) -> Path:
        return self.base / name

    def choose(self, wanted: OverrideName | None = None) -> OwnershipStore | None:
        with opened(self.upper) as upper, opened(self.lower) as lower, opened(self.work) as work:
            return store_choice.choose(upper, wanted, work, [lower])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def place_without_xattrs(tmp_path: Path) -> Iterator[Place]:
    """On ramfs, which has no user xattrs."""
    base = tmp_path / "ramfs"
    base.mkdir()
    syscalls.mount(b"ramfs", os.fsencode(base), b"ramfs", 0, b"")
    try:
        yield Place(base)
    finally:
        _close_parents()
        syscalls.umount2(os.fsencode(base), 0)


def test_a_plain_upper_has_no_store(place: Place) -> None:
    assert place.choose() is None


def test_an_unmarked_lower_is_read_plainly(place: Place) -> None:
    with opened(place.lower) as fd:
        assert store_choice.detect(fd) is None


@pytest.mark.parametrize("name", [OverrideName.CONTAINERS, OverrideName.LEGACY])
def test_a_marked_lower_is_read_by_its_mark(place: Place, name: OverrideName) -> None:
    os.setxattr(place.lower, name, b"0:0:0755:dir")
    with opened(place.lower) as fd:
        found = store_choice.detect(fd)
    assert found is not None
    assert found.name is name


def test_an_upper_is_marked_when_asked_and_stays_so(place: Place) -> None:
    place.upper.chmod(0o1770)
    for wanted in (OverrideName.CONTAINERS, None):
        store = place.choose(wanted)
        assert isinstance(store, XattrStore)
        assert store.name is CONTAINERS
        store.close()
    me = os.stat(place.upper)
    assert os.getxattr(place.upper, CONTAINERS) == b"%d:%d:1770:dir" % (me.st_uid, me.st_gid)


def test_an_unmarked_upper_takes_the_lowers_root(place: Place) -> None:
    os.setxattr(place.lower, CONTAINERS, b"0:0:0555:dir")
    store = place.choose(OverrideName.CONTAINERS)
    assert store is not None
    with opened(place.upper) as fd:
        assert stat.S_IMODE(store.load(RealObject(fd), os.fstat(fd)).st_mode) == 0o555
    store.close()


@pytest.mark.root
def test_a_real_root_may_use_the_privileged_name(place: Place) -> None:
    store = place.choose(OverrideName.PRIVILEGED)
    assert isinstance(store, XattrStore)
    assert store.name is OverrideName.PRIVILEGED
    store.close()


@pytest.mark.root
def test_without_user_xattrs_the_database_is_chosen_and_found_again(place_without_xattrs: Place) -> None:
    place = place_without_xattrs
    path = _object(place.upper, "file")
    store = place.choose(OverrideName.CONTAINERS)
    assert isinstance(store, DatabaseStore)
    store.change(at(path), path.lstat(), uid=5)
    store.close()
    store = place.choose()
    assert isinstance(store, DatabaseStore)
    assert store.load(at(path), path.lstat()).st_uid == 5
    store.close()


def test_sqlite_is_imported_only_with_the_database() -> None:
    program = "import sys; import fuseunion.core.ownership.store_choice; print('sqlite3' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"
