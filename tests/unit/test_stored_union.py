"""A union whose upper stores ownership: what is shown is stored, and what is real never changes owner.

Every test runs over both stores: extended attributes with the database for links, and the database alone.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fuseunion.core.ids.identity import Identity, IdMap
from fuseunion.core.ops.attributes import Change
from fuseunion.core.ops.create import Owner
from fuseunion.core.ownership.database_store import DatabaseStore
from fuseunion.core.ownership.facts import DATABASE_FILE, Facts
from fuseunion.core.ownership.stored_names import OverrideName
from fuseunion.core.tree.directory import Directory
from fuseunion.linux.objects.real_object import RealObject
from tests.support import acl
from tests.support.inprocess import InProcess, in_process

OVERRIDE = "user.containers.override_stat"
CAPABILITY = b"security.capability"
SOME_CAPABILITY = b"\x01\x00\x00\x02\x00\x04" + b"\x00" * 14

Open = Callable[[], AbstractContextManager[InProcess]]


def _begin_database(upper: Path, work: Path) -> None:
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (upper, work)]
    store = DatabaseStore(fds[1])
    real = os.fstat(fds[0])
    store.store(RealObject(fds[0]), real, Facts.of(real))
    store.close()
    for fd in fds:
        os.close(fd)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An empty stack of layers."""
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture(params=["attributes", "database"])
def opened(request: pytest.FixtureRequest, base: Path) -> Open:
    """Opens the union, again and again."""
    wanted = OverrideName.CONTAINERS
    if request.param == "database":
        _begin_database(base / "upper", base / "work")
        wanted = None

    def open_union() -> AbstractContextManager[InProcess]:
        return in_process([base / "lower"], base / "upper", base / "work", store=wanted)

    return open_union


def _seen(union: InProcess, path: str) -> tuple[int, int, int]:
    st, _ = union.union.stat(union.find(path))
    return st.st_uid, st.st_gid, st.st_mode


def test_what_is_changed_is_seen_and_comes_back(base: Path, opened: Open) -> None:
    (base / "lower/file").write_bytes(b"x")
    (base / "lower/dir").mkdir()
    (base / "lower/link").symlink_to("file")
    (base / "lower/file").chmod(0o640)
    expected = {
        "/file": (33, 44, stat.S_IFREG | 0o4711),
        "/dir": (5, os.getegid(), stat.S_IFDIR | 0o2700),
        "/link": (7, 8, stat.S_IFLNK | 0o777),
        "/new": (9, 9, stat.S_IFREG | 0o400),
    }
    with opened() as union:
        union.setattr("/file", Change(uid=33, gid=44, mode=0o4711))
        union.setattr("/dir", Change(uid=5, mode=0o2700))
        union.setattr("/link", Change(uid=7, gid=8))
        union.create("/new", b"new")
        union.setattr("/new", Change(uid=9, gid=9, mode=0o400))
        assert {path: _seen(union, path) for path in expected} == expected
    with opened() as union:
        assert {path: _seen(union, path) for path in expected} == expected
        assert union.read("/new") == b"new"
    for path in expected:
        real = os.lstat(f"{base}/upper{path}")
        assert (real.st_uid, real.st_gid) == (os.geteuid(), os.getegid())
        assert not real.st_mode & 0o6000
    assert stat.S_IMODE(os.lstat(base / "upper/new").st_mode) == 0o600
    assert stat.S_IMODE(os.lstat(base / "upper/dir").st_mode) == 0o700
    real = os.lstat(base / "lower/file")
    assert (real.st_uid, stat.S_IMODE(real.st_mode)) == (os.geteuid(), 0o640)


def test_devices_fifos_and_sockets_are_regular_files(base: Path, opened: Open) -> None:
    made = {
        "/char": (stat.S_IFCHR | 0o666, os.makedev(1, 3)),
        "/block": (stat.S_IFBLK | 0o660, os.makedev(259, 70000)),
        "/fifo": (stat.S_IFIFO | 0o640, 0),
        "/socket": (stat.S_IFSOCK | 0o755, 0),
    }
    with opened() as union:
        for path, (mode, rdev) in made.items():
            union.mknod(path, mode, rdev, Owner(3, 4, 0))
        with pytest.raises(PermissionError):
            union.mknod("/whiteout", stat.S_IFCHR, 0)
    with opened() as union:
        for path, (mode, rdev) in made.items():
            inode = union.find(path)
            st, _ = union.union.stat(inode)
            assert (st.st_mode, st.st_rdev, st.st_uid, st.st_gid) == (mode, rdev, 3, 4)
            assert inode.kind == stat.S_IFMT(mode)
            assert stat.S_ISREG(os.lstat(f"{base}/upper{path}").st_mode)
        union.setattr("/char", Change(uid=0))
        union.unlink("/block")
        union.rename("/char", "/moved")
        assert union.names("/") == ["fifo", "moved", "socket"]
        st, _ = union.union.stat(union.find("/moved"))
        assert (st.st_rdev, st.st_uid) == (os.makedev(1, 3), 0)


def test_new_objects_inherit_from_the_stored_directory(base: Path, opened: Open) -> None:
    with opened() as union:
        union.mkdir("/d")
        union.setattr("/d", Change(gid=77, mode=0o2775))
        union.create("/d/file")
        union.mkdir("/d/sub")
        assert _seen(union, "/d/file")[1] == 77
        assert _seen(union, "/d/sub")[1:] == (77, stat.S_IFDIR | 0o2755)


def test_chown_takes_privileges_away(opened: Open) -> None:
    with opened() as union:
        union.create("/file")
        union.setattr("/file", Change(mode=0o6755))
        union.setxattr("/file", CAPABILITY, SOME_CAPABILITY)
        union.setattr("/file", Change(uid=5))
        assert _seen(union, "/file")[2] == stat.S_IFREG | 0o755
        with pytest.raises(OSError) as missing:
            union.union.getxattr(union.find("/file"), CAPABILITY)
        assert missing.value.errno == errno.ENODATA


def test_an_acl_sets_the_stored_mode_and_chmod_the_acl(base: Path, opened: Open) -> None:
    """The real owner is the daemon's user and keeps access; what is seen is what was set."""
    value = acl.with_named_user(1234, owner=4, group=0, other=0)
    with opened() as union:
        union.create("/file", b"data")
        union.setxattr("/file", acl.ACCESS.encode(), value)
        assert _seen(union, "/file")[2] == stat.S_IFREG | 0o470
        assert union.union.getxattr(union.find("/file"), acl.ACCESS.encode()) == value
        union.write("/file", b"more")
        union.setattr("/file", Change(mode=0o640))
        seen = acl.decode(union.union.getxattr(union.find("/file"), acl.ACCESS.encode()))
        assert [(rule.tag, rule.perm) for rule in seen] == [
            (acl.Tag.USER_OBJ, 6),
            (acl.Tag.USER, 7),
            (acl.Tag.GROUP_OBJ, 0),
            (acl.Tag.MASK, 4),
            (acl.Tag.OTHER, 0),
        ]
    with opened() as union:
        assert _seen(union, "/file")[2] == stat.S_IFREG | 0o640


def test_the_attributes_of_the_store_are_out_of_reach(opened: Open) -> None:
    with opened() as union:
        union.create("/file")
        union.setattr("/file", Change(uid=5))
        inode = union.find("/file")
        assert union.union.listxattr(inode) == []
        for name in (OVERRIDE.encode(), b"user.containers.override_security.capability"):
            with pytest.raises(OSError) as missing:
                union.union.getxattr(inode, name)
            assert missing.value.errno == errno.ENODATA
            with pytest.raises(PermissionError):
                union.setxattr("/file", name, b"0:0:4777")


def test_nobody_can_mark_a_plain_upper(base: Path) -> None:
    """On anything but the root the attribute is a user's like others."""
    with in_process([base / "lower"], base / "upper", base / "work") as union:
        union.create("/file")
        union.setxattr("/file", OVERRIDE.encode(), b"0:0:4755")
        assert union.union.listxattr(union.find("/file")) == [OVERRIDE.encode()]
        with pytest.raises(PermissionError):
            union.setxattr("/", OVERRIDE.encode(), b"0:0:0755")
    with in_process([base / "lower"], base / "upper", base / "work") as union:
        assert _seen(union, "/file")[2] == stat.S_IFREG | 0o644


def test_what_is_removed_is_forgotten(base: Path) -> None:
    """The database goes with the last fact."""
    with in_process([base / "lower"], base / "upper", base / "work", store=OverrideName.CONTAINERS) as union:
        union.symlink("x", "/one")
        union.symlink("x", "/two")
        union.setattr("/one", Change(uid=5))
        union.rename("/two", "/one")
        union.unlink("/one")
    assert not (base / "work" / os.fsdecode(DATABASE_FILE)).exists()


# -- marked lowers -------------------------------------------------------------------------------------------------


def _marked(base: Path) -> None:
    """A lower as containers/storage makes it with force_mask."""
    lower = base / "lower"
    for name, value in {
        "su": b"0:0:4755",
        "null": b"0:0:0666:char-1-3",
        "pipe": b"1:2:0600:pipe",
        "cap": b"0:0:0755:file",
        "old": b"6:7:100640",
    }.items():
        (lower / name).write_bytes(b"" if name in ("null", "pipe") else name.encode())
        (lower / name).chmod(0o700)
        os.setxattr(lower / name, OVERRIDE, value)
    os.setxattr(lower / "cap", "user.containers.override_security.capability", SOME_CAPABILITY)
    (lower / "dir").mkdir()
    os.setxattr(lower / "dir", OVERRIDE, b"8:9:1777:dir")
    os.setxattr(lower / "dir", "user.containers.override_trusted.overlay.x", b"nested")
    os.setxattr(lower, OVERRIDE, b"0:0:0555:dir")


MARKED = {
    "/su": (0, 0, stat.S_IFREG | 0o4755),
    "/null": (0, 0, stat.S_IFCHR | 0o666),
    "/pipe": (1, 2, stat.S_IFIFO | 0o600),
    "/cap": (0, 0, stat.S_IFREG | 0o755),
    "/old": (6, 7, stat.S_IFREG | 0o640),
    "/dir": (8, 9, stat.S_IFDIR | 0o1777),
}


def test_a_marked_lower_is_seen_and_copied_into_a_store(base: Path) -> None:
    _marked(base)
    with in_process([base / "lower"], base / "upper", base / "work", store=OverrideName.CONTAINERS) as union:
        assert {path: _seen(union, path) for path in MARKED} == MARKED
        assert _seen(union, "/")[2] == stat.S_IFDIR | 0o555  # the mark of the lower's root was taken over
        for path in MARKED:
            union.setattr(path, Change(mtime_ns=5))
        union.create("/dir/new")
        assert {path: _seen(union, path) for path in MARKED} == MARKED
        assert union.union.getxattr(union.find("/cap"), CAPABILITY) == SOME_CAPABILITY
    for path in MARKED:
        assert os.lstat(f"{base}/upper{path}").st_uid == os.geteuid()
    assert os.getxattr(base / "upper/null", OVERRIDE) == b"0:0:0666:char-1-3"
    assert os.getxattr(base / "upper/dir", "user.containers.override_trusted.overlay.x") == b"nested"


@pytest.mark.root
def test_a_marked_lower_is_made_real_in_an_upper_without_store(base: Path) -> None:
    _marked(base)
    with in_process([base / "lower"], base / "upper", base / "work") as union:
        for path in MARKED:
            union.setattr(path, Change(mtime_ns=5))
        union.create("/dir/new")
        assert {path: _seen(union, path) for path in MARKED} == MARKED
    for path, expected in MARKED.items():
        real = os.lstat(f"{base}/upper{path}")
        assert (real.st_uid, real.st_gid, real.st_mode) == expected
        assert OVERRIDE not in os.listxattr(f"{base}/upper{path}", follow_symlinks=False)
    assert os.lstat(base / "upper/null").st_rdev == os.makedev(1, 3)
    assert os.getxattr(base / "upper/cap", "security.capability") == SOME_CAPABILITY


def test_a_type_cannot_turn_a_directory_into_a_file(base: Path) -> None:
    (base / "lower/dir").mkdir()
    (base / "lower/file").touch()
    os.setxattr(base / "lower/dir", OVERRIDE, b"0:0:0755:file")
    os.setxattr(base / "lower/file", OVERRIDE, b"0:0:0755:dir")
    os.setxattr(base / "lower", OVERRIDE, b"0:0:0755:dir")
    with in_process([base / "lower"], base / "upper", base / "work") as union:
        assert isinstance(union.find("/dir"), Directory)
        assert _seen(union, "/dir")[2] == stat.S_IFDIR | 0o755
        assert _seen(union, "/file")[2] == stat.S_IFREG | 0o755


# -- id maps and squash ----------------------------------------------------------------------------------------------


def test_a_map_shifts_acls_and_capabilities(base: Path) -> None:
    shifted = Identity(IdMap([(0, 1000, 1000)], "uid"), IdMap([(0, 1000, 1000)], "gid"))
    with in_process([base / "lower"], base / "upper", base / "work", identity=shifted) as union:
        union.create("/file")
        union.setxattr("/file", acl.ACCESS.encode(), acl.with_named_user(1234))
        inode = union.find("/file")
        assert union.union.getxattr(inode, acl.ACCESS.encode()) == acl.with_named_user(1234)
        with pytest.raises(OSError) as refused:
            union.setxattr("/file", acl.ACCESS.encode(), acl.with_named_user(5))
        assert refused.value.errno == errno.EINVAL
    assert os.getxattr(base / "upper/file", acl.ACCESS) == acl.with_named_user(234)
