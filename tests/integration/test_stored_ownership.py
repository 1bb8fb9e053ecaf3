"""Stored ownership on real mounts: --fakeroot, xattr_permissions=1 and 2, with fuse-overlayfs before and after.

What root or the root of a user namespace may do to a plain directory, they may do to a mount with stored ownership,
with the same result (Twin). An ordinary user, who owns one id, may do in their own mount what the kernel lets through.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import acl, layers, libc
from tests.support.arena import Arena
from tests.support.identity import acting_as, umask
from tests.support.layers import Dir, File, Name, Node, Symlink
from tests.support.twin import Twin
from tests.support.waiting import wait_until

OVERRIDE = "user.containers.override_stat"
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)

LOWER: dict[Name, Node] = {
    "etc": Dir(),
    "etc/conf": File(b"conf", mode=0o640),
    "bin": Dir(),
    "bin/tool": File(b"#!/bin/sh\n", mode=0o755),
    "bin/link": Symlink("tool"),
}


def _facts(path: Path) -> tuple[int, int, str]:
    st = os.lstat(path)
    return st.st_uid, st.st_gid, stat.filemode(st.st_mode)


def _real_owners(upper: Path) -> set[tuple[int, int]]:
    owners = set()
    for directory, names, files in os.walk(upper):
        for name in names + files:
            st = os.lstat(os.path.join(directory, name))
            if not stat.S_ISCHR(st.st_mode):
                owners.add((st.st_uid, st.st_gid))
    return owners


def test_a_user_builds_a_tree_of_many_owners(arena: Arena) -> None:
    """Every actor, the ordinary user with one id too."""
    lower = arena.lower(LOWER)
    expected = {
        "etc": (0, 5, "drwxr-s---"),
        "etc/conf": (0, 7, "-rw-r-----"),
        "bin/tool": (33, 44, "-rwsr-xr-x"),
        "bin/link": (9, 9, "lrwxrwxrwx"),
        "new": (101, 102, "-rw-------"),
        "pipe": (1, 2, "prw-r-----"),
        "closed": (3, 3, "d---------"),
        "closed/in": (4, 4, "-rw-r--r--"),
    }
    with arena.mount(lower, arguments=["--fakeroot"]) as mount:
        os.chown(mount / "etc/conf", 0, 7)
        os.chown(mount / "etc", 0, 5)
        os.chmod(mount / "etc", 0o2750)
        os.chown(mount / "bin/tool", 33, 44)
        os.chmod(mount / "bin/tool", 0o4755)
        os.chown(mount / "bin/link", 9, 9, follow_symlinks=False)
        (mount / "new").write_bytes(b"new")
        os.chown(mount / "new", 101, 102)
        os.chmod(mount / "new", 0o600)
        os.mkfifo(mount / "pipe")
        os.chown(mount / "pipe", 1, 2)
        os.chmod(mount / "pipe", 0o640)
        (mount / "closed").mkdir()
        (mount / "closed/in").touch()
        os.chown(mount / "closed/in", 4, 4)
        os.chown(mount / "closed", 3, 3)
        os.chmod(mount / "closed", 0)
        assert {path: _facts(mount / path) for path in expected} == expected
    with arena.mount(lower) as mount:  # the upper says for itself that it stores ownership
        assert {path: _facts(mount / path) for path in expected} == expected
        assert (mount / "new").read_bytes() == b"new"
        (mount / "closed/in").write_bytes(b"changed")
        (mount / "closed/in").unlink()
        (mount / "etc/conf").write_bytes(b"changed")
        os.chmod(mount / "closed", 0o1777)
        assert OVERRIDE not in os.listxattr(mount / "new")
    assert _real_owners(arena.upper) == {(os.geteuid(), os.getegid())}
    assert os.lstat(arena.upper / "new").st_mode & 0o7777 == 0o600
    assert os.getxattr(arena.upper / "bin/tool", OVERRIDE) == b"33:44:4755:file"


@pytest.mark.actors("user")
def test_what_the_kernel_keeps_from_an_ordinary_user(arena: Arena) -> None:
    """docs/ownership.md names these; when one of them succeeds some day, the page is to be changed."""
    lower = arena.lower(LOWER)
    with arena.mount(lower, arguments=["--fakeroot"]) as mount:
        with pytest.raises(PermissionError):
            os.mknod(mount / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chown(mount / "bin/tool", 0, 0)
        with pytest.raises(PermissionError):
            os.setxattr(mount / "bin/tool", "security.capability", CAPABILITY)
        with pytest.raises(PermissionError):
            os.setxattr(mount / "bin/tool", acl.ACCESS, acl.with_named_user(1000))
        # This much is the mount's to allow: a sticky directory of somebody else, and root's rule for execution.
        os.chmod(mount / "etc", 0o1777)
        (mount / "etc/theirs").touch()
        os.chown(mount / "etc/theirs", 5, 5)
        os.chown(mount / "etc", 0, 0)
        (mount / "etc/theirs").unlink()
        assert os.access(mount / "bin/tool", os.X_OK)
        assert not os.access(mount / "etc/conf", os.X_OK)


@pytest.mark.actors("user")
def test_objects_of_an_upper_that_are_closed_to_their_owner(arena: Arena) -> None:
    """user.* attributes want read and write permission on the object, and these were made without the mount."""
    layers.build(arena.upper, {"none": File(b"none", mode=0), "read": File(b"read", mode=0o550), "closed": Dir(mode=0)})
    with arena.mount(arena.lower({}), options=["xattr_permissions=2"]) as mount:
        merged = mount.merged
        assert {name: _facts(merged / name)[2] for name in sorted(os.listdir(merged))} == {
            "closed": "d---------",
            "none": "----------",
            "read": "-r-xr-x---",
        }
        for name in ("none", "read", "closed"):
            with pytest.raises(OSError) as refused:
                os.getxattr(merged / name, "security.capability")
            assert refused.value.errno == errno.ENODATA
            (merged / name).chmod(0o2750)
            os.chown(merged / name, -1, os.getgid())
        (merged / "none").write_bytes(b"written")
        (merged / "closed" / "new").touch()
        os.setxattr(merged / "read", "user.new", b"value")
        seen = {name: _facts(merged / name) for name in ("none", "read", "closed")}
    with mount:
        assert {name: _facts(merged / name) for name in seen} == seen
        assert (merged / "none").read_bytes() == b"written"


@pytest.fixture
def upper_with_theirs(arena: Arena) -> Path:
    """An upper of the actor's, in which root has left what nobody else may read."""
    layers.build(arena.upper, {"theirs": File(b"secret", mode=0o600), "closed": Dir(mode=0o700)})
    os.chown(arena.upper, arena.actor.user.uid, arena.actor.user.gid)
    return arena.upper


@pytest.mark.actors("user")
def test_objects_of_somebody_else_in_an_upper(arena: Arena, upper_with_theirs: Path) -> None:
    """They show their real owner, and are nobody's but that one's."""
    with arena.mount(arena.lower({}), options=["xattr_permissions=2"]) as mount:
        assert sorted(os.listdir(mount.merged)) == ["closed", "theirs"]
        for name in ("closed", "theirs"):
            assert _facts(mount / name) == _facts(upper_with_theirs / name)
            assert _facts(mount / name)[:2] == (0, 0)
            with pytest.raises(PermissionError):
                (mount / name).chmod(0o777)
        with pytest.raises(PermissionError):
            (mount / "theirs").read_bytes()
        with pytest.raises(PermissionError):
            os.listdir(mount / "closed")


@pytest.mark.actors("user")
def test_an_ordinary_user_makes_devices_out_of_empty_files(arena: Arena) -> None:
    lower = arena.lower(LOWER)
    with arena.mount(lower, arguments=["--fakeroot"]) as mount:
        (mount / "null").touch()
        os.link(mount / "null", mount / "second")
        os.lstat(mount / "null")
        os.setxattr(mount / "null", OVERRIDE, b"0:5:0666:char-1-3")
        for name in ("null", "second"):
            assert _facts(mount / name) == (0, 5, "crw-rw-rw-")
            assert os.lstat(mount / name).st_rdev == os.makedev(1, 3)
        os.setxattr(mount / "bin/tool", OVERRIDE, b"33:44:4755")
        assert _facts(mount / "bin/tool") == (33, 44, "-rwsr-xr-x")
        assert (mount / "bin/tool").read_bytes() == b"#!/bin/sh\n"
        for path, value in (("etc", b"0:0:0755:file"), ("bin/tool", b"0:0:0755:pipe"), ("etc/conf", b"nonsense")):
            with pytest.raises(OSError) as refused:
                os.setxattr(mount / path, OVERRIDE, value)
            assert refused.value.errno == errno.EINVAL
        (mount / "whiteout").touch()
        with pytest.raises(PermissionError):
            os.setxattr(mount / "whiteout", OVERRIDE, b"0:0:0666:char-0-0")
    with arena.mount_read_only(arena.upper) as mount:
        assert _facts(mount / "null") == (0, 5, "crw-rw-rw-")


@pytest.mark.actors("user")
def test_an_acl_changes_the_mode_that_is_seen(arena: Arena) -> None:
    with arena.mount(arena.lower(LOWER), arguments=["--fakeroot"]) as mount:
        (mount / "new").touch()
        os.setxattr(mount / "new", acl.ACCESS, acl.with_named_user(1234, owner=4, group=0))
        assert _facts(mount / "new")[2] == "-r--rwx---"
        (mount / "new").write_bytes(b"still mine")


@pytest.mark.actors("root", "userns")
@pytest.mark.parametrize("options", [["xattr_permissions=2"], ["xattr_permissions=2", "noacl"]], ids=["acl", "noacl"])
def test_it_behaves_like_a_plain_directory(arena: Arena, options: list[str]) -> None:
    lower = arena.lower({**LOWER, "home": Dir(mode=0o2775, uid=1000, gid=1001), "home/file": File(b"x", mode=0o664)})
    with arena.mount(lower, options=[*options, "allow_other"]) as mount:
        twin = Twin(arena, mount)

        def build(root: Path) -> None:
            os.chown(root / "bin/tool", 33, 44)
            os.chmod(root / "bin/tool", 0o6755)
            os.chown(root / "bin/link", 7, 7, follow_symlinks=False)
            os.setxattr(root / "bin/tool", "security.capability", CAPABILITY)
            with acting_as(1000):
                os.chown(root / "home/file", -1, 1000)
                (root / "home/own").touch()
                (root / "home/dir").mkdir()
                os.symlink("own", root / "home/link")
                os.mkfifo(root / "home/fifo")
                os.link(root / "home/own", root / "home/second")

        def use(root: Path) -> None:
            with open(root / "bin/tool", "ab") as file:
                file.write(b"exit 0\n")
            os.rename(root / "home/dir", root / "etc/dir")
            os.rename(root / "home/link", root / "etc/link")
            os.unlink(root / "home/fifo")
            os.chown(root / "home", 0, 0)

        def forbidden(root: Path) -> object:
            with acting_as(1002):
                return str((root / "etc/conf").read_bytes())

        twin.both(build)
        twin.both(forbidden)
        twin.both(use)
        twin.remount()


@pytest.mark.actors("root", "userns")
def test_acls(arena: Arena) -> None:
    """An ACL and the stored mode go together, and grant what they say."""
    lower = arena.lower(LOWER)
    with arena.mount(lower, options=["xattr_permissions=2", "allow_other"]) as mount:
        with pytest.raises(PermissionError):
            os.setxattr(mount / "etc/conf", OVERRIDE, b"0:0:4777")
        twin = Twin(arena, mount)

        def grant(root: Path) -> None:
            os.setxattr(root / "etc/conf", acl.ACCESS, acl.with_named_user(1234, 6, owner=6, group=0))
            os.setxattr(root / "etc", acl.DEFAULT, acl.with_named_user(1234, 7))
            (root / "etc/new").write_bytes(b"n")
            (root / "etc/sub").mkdir()
            os.chown(root / "etc/new", 5, 6)

        def use(root: Path) -> object:
            with acting_as(1234):
                (root / "etc/new").write_bytes(b"changed")
                return (root / "etc/conf").read_bytes()

        def close(root: Path) -> None:
            os.chmod(root / "etc/conf", 0o600)

        twin.both(grant)
        twin.both(use)
        twin.both(close)
        twin.both(use)
        twin.remount()


@pytest.mark.actors("root")
def test_devices(arena: Arena) -> None:
    lower = arena.lower(LOWER)
    with arena.mount(lower, arguments=["--fakeroot"]) as mount:
        with umask(0):
            os.mknod(mount / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chown(mount / "null", 5, 6)
    assert stat.S_ISREG(os.lstat(arena.upper / "null").st_mode)
    with arena.mount(lower) as mount:
        assert _facts(mount / "null") == (5, 6, "crw-rw-rw-")
        assert os.lstat(mount / "null").st_rdev == os.makedev(1, 3)


@pytest.mark.actors("root")
def test_privileged_attributes(arena: Arena) -> None:
    """xattr_permissions=1: every kind of object can have the attribute, so that no database is needed."""
    lower = arena.lower(LOWER)
    with arena.mount(lower, options=["xattr_permissions=1"]) as mount:
        os.chown(mount / "bin/link", 7, 8, follow_symlinks=False)
        os.chown(mount / "bin/tool", 9, 9)
        os.mkfifo(mount / "pipe")
    assert os.listxattr(arena.upper / "bin/link", follow_symlinks=False).count("security.fuseoverlayfs.override_stat")
    with arena.mount(lower) as mount:
        assert _facts(mount / "bin/link")[:2] == (7, 8)
        assert _facts(mount / "bin/tool")[:2] == (9, 9)
        assert stat.S_ISFIFO(os.lstat(mount / "pipe").st_mode)
    assert _real_owners(arena.upper) == {(0, 0)}


@pytest.mark.actors("user", "userns")
def test_privileged_attributes_are_for_root(arena: Arena) -> None:
    arena.lower(LOWER, "lower")
    arena.directory("merged")
    done = arena.place.fuseunion("-o", "xattr_permissions=1", arena.root / "lower", arena.upper, arena.root / "merged")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert "--fakeroot" in done.stderr


@pytest.mark.actors("root")
def test_the_database_where_there_are_no_attributes(arena: Arena) -> None:
    """ramfs has no extended attributes, as tmpfs before Linux 6.6 and some network filesystems."""
    lower = arena.lower(LOWER)
    ram = arena.directory("ram")
    libc.mount("ramfs", str(ram), "ramfs", 0, "")
    try:
        with arena.mount(lower, upper=ram / "upper", work=ram / "work", arguments=["--fakeroot"]) as mount:
            os.chown(mount / "bin/tool", 33, 44)
            os.chmod(mount / "bin/tool", 0o4755)
            os.mknod(mount / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            (mount / "gone").touch()
            (mount / "gone").unlink()
            fd = os.open(mount / "bin/tool", os.O_RDWR)
            os.fsync(fd)
            os.close(fd)
            os.rename(mount / "bin/tool", mount / "moved")
            assert "database" in mount.log()
            mount.kill()
            mount.start()
            assert _facts(mount / "moved") == (33, 44, "-rwsr-xr-x")
        assert (ram / "work/fuseunion.db").exists()
        assert _real_owners(ram / "upper") == {(0, 0)}
        with arena.mount(lower, upper=ram / "upper", work=ram / "work") as mount:
            assert _facts(mount / "moved") == (33, 44, "-rwsr-xr-x")
            assert os.lstat(mount / "null").st_rdev == os.makedev(1, 3)
    finally:
        libc.umount(str(ram))


# -- fuse-overlayfs --------------------------------------------------------------------------------------------------


@contextmanager
def _fuse_overlayfs(arena: Arena, lower: Path, upper: Path, *words: str) -> Iterator[Path]:
    """The same layers mounted by fuse-overlayfs, with more words for -o."""
    program = shutil.which("fuse-overlayfs")
    assert program, "install fuse-overlayfs"
    merged, work = arena.directory("other-merged"), arena.directory("other-work")
    options = ",".join([f"lowerdir={lower},upperdir={upper},workdir={work}", *words])
    with subprocess.Popen([program, "-f", "-o", options, merged], env=arena.place.environment()) as daemon:
        try:
            wait_until(lambda: os.path.ismount(merged), "fuse-overlayfs is mounted")
            yield merged
        finally:
            libc.umount(str(merged))
            daemon.wait()


@pytest.mark.actors("root", "userns")
def test_fuse_overlayfs_reads_what_we_write(arena: Arena) -> None:
    """By the mark on the root; with the option, 1.10 would look for its own older name."""
    lower = arena.lower(LOWER)
    expected = {"bin/tool": (33, 44, "-rwsr-xr-x"), "etc": (5, 6, "drwxrwx---"), "new": (7, 8, "-rw-r-----")}
    with arena.mount(lower, options=["xattr_permissions=2"]) as mount:
        os.chown(mount / "bin/tool", 33, 44)
        os.chmod(mount / "bin/tool", 0o4755)
        os.chown(mount / "etc", 5, 6)
        os.chmod(mount / "etc", 0o770)
        (mount / "new").touch()
        os.chown(mount / "new", 7, 8)
        os.chmod(mount / "new", 0o640)
        (mount / "etc/conf").unlink()
    with _fuse_overlayfs(arena, lower, arena.upper) as merged:
        assert {path: _facts(merged / path) for path in expected} == expected
        assert not (merged / "etc/conf").exists()


@pytest.mark.actors("root", "userns")
def test_we_go_on_with_what_fuse_overlayfs_writes(arena: Arena) -> None:
    """Under the name that it uses: an upper keeps its mark. (1.10 loses an owner when the mode is changed after it.)"""
    lower = arena.lower(LOWER)
    expected = {"bin/tool": (33, 44, "-rwxr-xr-x"), "etc": (0, 0, "drwxrwx---"), "new": (0, 0, "-rw-r-----")}
    arena.directory("upper")
    with _fuse_overlayfs(arena, lower, arena.upper, "xattr_permissions=2") as merged:
        os.chown(merged / "bin/tool", 33, 44)
        os.chmod(merged / "etc", 0o770)
        (merged / "new").touch()
        os.chmod(merged / "new", 0o640)
        (merged / "etc/conf").unlink()
    (name,) = {name for name in os.listxattr(arena.upper) if name.endswith("override_stat")}
    with arena.mount(lower, options=["xattr_permissions=2"]) as mount:
        assert {path: _facts(mount / path) for path in expected} == expected
        assert not (mount / "etc/conf").exists()
        os.chown(mount / "new", 7, 8)
        os.chmod(mount / "new", 0o600)
    assert os.getxattr(arena.upper / "new", name) == b"7:8:0600:file"
    with _fuse_overlayfs(arena, lower, arena.upper, "xattr_permissions=2") as merged:
        assert _facts(merged / "new") == (7, 8, "-rw-------")


# -- id maps -----------------------------------------------------------------------------------------------------------


@pytest.mark.actors("root", "userns")
def test_maps_and_stored_ownership_together(arena: Arena) -> None:
    """What is stored is in disk ids, and everything that enters or leaves goes through the map."""
    lower = arena.lower({"file": File(b"x", uid=0, gid=0)})
    maps = ["--uid-map", "0:1000:100", "--gid-map=0:2000:100", "--uid-map", "100:0:10"]
    with arena.mount(lower, arguments=["--fakeroot", *maps], tolerated="outside the .id map") as mount:
        assert _facts(mount / "file")[:2] == (1000, 2000)
        os.chown(mount / "file", 1033, 2044)
        os.chown(mount / "file", 3, -1)
        assert _facts(mount / "file")[:2] == (3, 2044)
        with pytest.raises(OSError) as refused:
            os.chown(mount / "file", 5000, -1)
        assert refused.value.errno == errno.EINVAL
    assert os.getxattr(arena.upper / "file", OVERRIDE).startswith(b"103:44:")


def test_squash_drops_what_cannot_be_given(arena: Arena) -> None:
    """chown succeeds and changes nothing that is seen, also for an ordinary user."""
    lower = arena.lower({"file": File(b"x"), "dir": Dir()})
    with arena.mount(lower, options=["squash_to_uid=12", "squash_to_gid=13"]) as mount:
        assert _facts(mount / "file")[:2] == (12, 13)
        (mount.merged / "new").touch() if arena.actor.may_chown else None
        if arena.actor.may_chown:
            os.chown(mount / "file", 5, 5)
            assert _facts(mount / "new")[:2] == (12, 13)
        assert _facts(mount / "file")[:2] == (12, 13)
