"""What the machine's root believes of stored ownership: nothing that somebody else could have written.

The ordinary user of the tests is the one who forges. Root mounts what lies there, for everybody (`allow_other`).
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from fuseunion.core.ownership.database_store import DatabaseStore
from fuseunion.core.ownership.facts import Facts
from fuseunion.linux.objects.real_object import RealObject
from tests.support import acl, libc
from tests.support.arena import Arena
from tests.support.identity import acting_as, umask
from tests.support.layers import Dir, File

pytestmark = [pytest.mark.root, pytest.mark.actors("root")]

OVERRIDE = "user.containers.override_stat"
LEGACY = "user.fuseoverlayfs.override_stat"
PRIVILEGED = "security.fuseoverlayfs.override_stat"
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 7, 0, 0, 0)  # cap_setuid=ep
IGNORED = "stored owners of"
SET_UID_ROOT = b"0:0:4755:file"


def _forge(root: Path, name: str = OVERRIDE, *, marked: bool = True) -> None:
    """A program that says it is set-user-ID root, a file that says it is the memory, one that says it may do all."""
    root.mkdir(exist_ok=True)
    shutil.copy(shutil.which("id") or "/usr/bin/id", root / "id")
    (root / "id").chmod(0o755)
    shutil.copy(root / "id", root / "able")
    (root / "mem").touch()
    (root / "mem").chmod(0o666)
    (root / "theirs").write_bytes(b"x")
    if marked:
        os.setxattr(root, name, b"0:0:0755:dir")
    os.setxattr(root / "id", name, SET_UID_ROOT)
    os.setxattr(root / "mem", name, b"0:0:0666:char-1-1")
    os.setxattr(root / "theirs", name, b"0:0:0644:file")
    os.setxattr(root / "able", name, b"0:0:0755:file")
    os.setxattr(root / "able", "user.containers.override_security.capability", CAPABILITY)


def _give(arena: Arena, root: Path, *, top: bool = True) -> None:
    user = arena.actor.user
    for path in [*([root] if top else []), *root.rglob("*")]:
        os.chown(path, user.uid, user.gid, follow_symlinks=False)


def _effective(arena: Arena, program: Path) -> int:
    """The effective user of a program that the ordinary user runs."""
    user = arena.actor.user
    done = subprocess.run(
        [program, "-u"], user=user.uid, group=user.gid, extra_groups=[], capture_output=True, check=True, cwd="/"
    )
    return int(done.stdout)


def _assert_harmless(arena: Arena, merged: Path) -> None:
    uid = arena.actor.user.uid
    assert _effective(arena, merged / "id") == uid
    assert os.lstat(merged / "id").st_mode & 0o6000 == 0
    assert stat.S_ISREG(os.lstat(merged / "mem").st_mode)
    with acting_as(uid):
        assert (merged / "mem").read_bytes() == b""
    assert os.lstat(merged / "theirs").st_uid == uid
    assert "security.capability" not in os.listxattr(merged / "able")
    with pytest.raises(OSError):
        os.getxattr(merged / "able", "security.capability")


@pytest.mark.parametrize("name", [OVERRIDE, LEGACY])
def test_a_users_lower(arena: Arena, name: str) -> None:
    theirs, base = arena.root / "theirs", arena.lower({"file": File(b"x")})
    _forge(theirs, name)
    _give(arena, theirs)
    arena.guard(theirs)
    with arena.mount(theirs, base, options=["allow_other", "dev"]) as mount:
        _assert_harmless(arena, mount.merged)
        assert mount.log().count(IGNORED) == 1
        for path in ("id", "able"):  # copied up, they are no more than they were
            os.utime(mount / path)
        _assert_harmless(arena, mount.merged)
    assert not [value for value in os.listxattr(arena.upper / "able") if "override" in value]
    with arena.mount(base, arguments=["--fakeroot"]) as mount:
        assert _effective(arena, mount / "id") == arena.actor.user.uid


def test_a_users_upper(arena: Arena) -> None:
    base = arena.lower({"file": File(b"x")})
    _forge(arena.upper)
    _give(arena, arena.upper)
    with arena.mount(base, options=["allow_other", "dev"]) as mount:
        _assert_harmless(arena, mount.merged)
        assert mount.log().count(IGNORED) == 1
        os.chown(mount / "file", 5, 6)
    assert (os.stat(arena.upper / "file").st_uid, os.stat(arena.upper / "file").st_gid) == (5, 6)
    with arena.mount_read_only(arena.upper) as mount:
        _assert_harmless(arena, mount.merged)


@pytest.mark.parametrize("asked", ["--fakeroot", "xattr_permissions=2"])
def test_a_lower_of_a_subordinate_id(arena: Arena, asked: str) -> None:
    """An option asks for the upper, and for lowers of root: not for one of a container's root, nor of its user."""
    theirs, base, first = arena.root / "theirs", arena.lower({"file": File(b"x")}), arena.actor.user.subuids.first
    _forge(theirs)
    for path in [theirs, *theirs.rglob("*")]:
        os.chown(path, first, first, follow_symlinks=False)
    arena.guard(theirs)
    arguments, options = ([asked], []) if asked.startswith("--") else ([], [asked])
    with arena.mount(theirs, base, arguments=arguments, options=["allow_other", "dev", *options]) as mount:
        assert mount.log().count(IGNORED) == 1
        assert _effective(arena, mount / "id") == arena.actor.user.uid
        assert os.lstat(mount / "theirs").st_uid == first
        assert stat.S_ISREG(os.lstat(mount / "mem").st_mode)
        os.utime(mount / "id")  # copied up, its owner is stored as it was shown
        assert (os.lstat(mount / "id").st_uid, os.lstat(mount / "id").st_mode & 0o6000) == (first, 0)
        assert _effective(arena, mount / "id") == arena.actor.user.uid


def test_the_terminal_hears_of_it(arena: Arena) -> None:
    theirs, merged = arena.root / "theirs", arena.directory("merged")
    _forge(theirs)
    _give(arena, theirs)
    done = arena.place.fuseunion("--read-only", theirs, merged)
    assert arena.place.fuseunion("umount", merged).returncode == 0
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("fuseunion: warning: ") and str(theirs) in line


def test_a_users_objects_in_a_layer_of_root(arena: Arena) -> None:
    """Their own facts count only as far as chmod(2) goes, and those of a file that others may write not at all."""
    layer = arena.root / "layer"
    _forge(layer)
    _give(arena, layer, top=False)
    uid, gid = arena.actor.user.uid, arena.actor.user.gid
    (layer / "own").touch(0o644)
    os.chown(layer / "own", uid, gid)
    os.setxattr(layer / "own", OVERRIDE, b"%d:%d:0700:file" % (uid, gid))
    (layer / "open").touch()
    (layer / "open").chmod(0o666)
    os.setxattr(layer / "open", OVERRIDE, SET_UID_ROOT)
    (layer / "good").touch()
    os.setxattr(layer / "good", OVERRIDE, b"3:4:6755:file")
    arena.guard(layer)
    with arena.mount(layer, options=["allow_other"]) as mount:
        _assert_harmless(arena, mount.merged)
        assert stat.S_IMODE(os.lstat(mount / "own").st_mode) == 0o700
        assert stat.S_IMODE(os.lstat(mount / "open").st_mode) == 0o666
        good = os.lstat(mount / "good")
        assert (good.st_uid, good.st_gid, stat.S_IMODE(good.st_mode)) == (3, 4, 0o6755)
        assert mount.log().count("are ignored in") == 1


def test_what_others_may_write_is_no_layer_of_root(arena: Arena) -> None:
    layer = arena.root / "layer"
    _forge(layer)
    layer.chmod(0o1777)
    arena.guard(layer)
    with arena.mount(layer, options=["allow_other"]) as mount:
        assert os.lstat(mount / "id").st_mode & 0o6000 == 0
        assert mount.log().count(IGNORED) == 1


def test_what_only_root_can_write_is_believed(arena: Arena) -> None:
    """But for set-id bits of what somebody else can fill."""
    layer = arena.root / "layer"
    _forge(layer)
    os.setxattr(layer, PRIVILEGED, b"0:0:0755:dir")
    os.setxattr(layer / "id", PRIVILEGED, SET_UID_ROOT)
    os.setxattr(layer / "theirs", PRIVILEGED, b"7:8:0600:file")
    _give(arena, layer)
    arena.guard(layer)
    with arena.mount(layer, options=["allow_other"]) as mount:
        assert _effective(arena, mount / "id") == arena.actor.user.uid
        theirs = os.lstat(mount / "theirs")
        assert (theirs.st_uid, theirs.st_gid, stat.S_IMODE(theirs.st_mode)) == (7, 8, 0o600)


def _store(upper: Path, work: Path, name: str, facts: Facts) -> None:
    fds = [os.open(path, os.O_RDONLY) for path in (work, upper / name)]
    store = DatabaseStore(fds[0])
    store.store(RealObject(fds[1]), os.fstat(fds[1]), facts)
    store.close()
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("whose", ["work", "database"])
def test_a_users_database(arena: Arena, whose: str) -> None:
    """Ignored, or the work directory is refused."""
    base, merged = arena.lower({"file": File(b"x")}), arena.directory("merged")
    work = arena.directory("work")
    arena.directory("upper")
    shutil.copy("/usr/bin/id", arena.upper / "id")
    _store(arena.upper, work, "id", Facts(0, 0, 0o4755, stat.S_IFREG))
    _give(arena, work, top=whose == "work")
    done = arena.place.fuseunion("--work", work, base, arena.upper, merged)
    assert done.returncode in (0, 3)
    if done.returncode == 0:
        assert IGNORED in done.stderr
        assert _effective(arena, merged / "id") == arena.actor.user.uid
        assert arena.place.fuseunion("umount", merged).returncode == 0


def test_the_database_of_root_says_nothing_of_a_users_file(arena: Arena) -> None:
    """The user could put any program into it."""
    base, work = arena.lower({"file": File(b"x")}), arena.directory("work")
    arena.directory("upper")
    shutil.copy("/usr/bin/id", arena.upper / "id")
    shutil.copy("/usr/bin/id", arena.upper / "of-root")
    _store(arena.upper, work, "id", Facts(0, 0, 0o4755, stat.S_IFREG))
    _store(arena.upper, work, "of-root", Facts(0, 0, 0o4755, stat.S_IFREG))
    _give(arena, arena.upper / "id")
    with arena.mount(base, work=work, options=["allow_other"]) as mount:
        assert _effective(arena, mount / "id") == arena.actor.user.uid
        assert _effective(arena, mount / "of-root") == 0


def test_an_option_asks_for_the_upper(arena: Arena) -> None:
    """And for nothing else: a user's lower stays a user's."""
    theirs, base = arena.root / "theirs", arena.lower({"file": File(b"x")})
    _forge(theirs)
    _forge(arena.upper)
    (theirs / "id").rename(theirs / "program")
    for root in (theirs, arena.upper):
        _give(arena, root)
    with arena.mount(theirs, base, arguments=["--fakeroot"]) as mount:
        assert os.lstat(mount / "id").st_mode & 0o4000
        assert _effective(arena, mount / "program") == arena.actor.user.uid
        assert IGNORED in mount.log()


def test_a_new_upper_with_an_option_is_roots(arena: Arena) -> None:
    """Although it looks like the lower's root: its owner could write what is believed."""
    theirs, user = arena.directory("theirs"), arena.actor.user
    (theirs / "file").touch()
    _give(arena, theirs)
    theirs.chmod(0o775)
    with arena.mount(theirs, arguments=["--fakeroot"]) as mount:
        shown = os.stat(mount.merged)
        assert (shown.st_uid, shown.st_gid, stat.S_IMODE(shown.st_mode)) == (user.uid, user.gid, 0o775)
        with acting_as(user.uid):
            (mount / "new").touch()
            with pytest.raises(PermissionError):
                (arena.upper / "direct").touch()
    real = os.stat(arena.upper)
    assert (real.st_uid, stat.S_IMODE(real.st_mode)) == (0, 0o755)


def test_an_option_does_not_ask_for_strangers(arena: Arena) -> None:
    """A user who wrote into root's upper, through a mount that stored nothing, gains nothing by a later --fakeroot."""
    base = arena.lower({"tmp": Dir(mode=0o1777)})
    with arena.mount(base, options=["allow_other"]) as mount, acting_as(arena.actor.user.uid):
        (mount / "tmp/mine").mkdir()
        _forge(mount / "tmp/mine", marked=False)
    with arena.mount(base, arguments=["--fakeroot"]) as mount:
        _assert_harmless(arena, mount / "tmp/mine")


def test_what_root_stores_counts_again(arena: Arena) -> None:
    """Without the option too, whatever the mode: nobody else may write to the real objects."""
    base = arena.lower({"dir": Dir(mode=0o1777), "file": File(b"x", mode=0o666)})
    with arena.mount(base, arguments=["--fakeroot"]) as mount, umask(0):
        os.mknod(mount / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chown(mount / "file", 33, 44)
        os.chown(mount / "dir", 5, 6)
        (mount / "dir/new").touch(0o666)
        os.chown(mount / "dir/new", 7, 8)
    for name in ("null", "file", "dir", "dir/new"):
        assert os.lstat(arena.upper / name).st_mode & 0o022 == 0
    with arena.mount(base, options=["allow_other"]) as mount:
        seen = {name: os.lstat(mount / name) for name in ("null", "file", "dir", "dir/new")}
        assert stat.S_ISCHR(seen["null"].st_mode)
        assert [(st.st_uid, stat.S_IMODE(st.st_mode)) for st in seen.values()] == [
            (0, 0o666),
            (33, 0o666),
            (5, 0o1777),
            (7, 0o666),
        ]
        with acting_as(arena.actor.user.uid):
            (mount / "file").write_bytes(b"changed")


def test_what_is_changed_becomes_roots(arena: Arena) -> None:
    """An object of somebody else's in root's layer: what root's mount stores of it is seen afterwards."""
    base = arena.lower({"file": File(b"x")})
    _forge(arena.upper)
    _give(arena, arena.upper, top=False)
    with arena.mount(base, options=["allow_other"]) as mount:
        os.chown(mount / "id", 3, 4)
        os.chmod(mount / "id", 0o4755)
        seen = os.lstat(mount / "id")
        assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (3, 4, 0o4755)
    real = os.lstat(arena.upper / "id")
    assert (real.st_uid, stat.S_IMODE(real.st_mode)) == (0, 0o755)


def test_an_acl_that_lets_others_write(arena: Arena) -> None:
    """It is the real one, so that only the option makes the stored owner count."""
    base = arena.lower({"file": File(b"x")})
    with arena.mount(base, arguments=["--fakeroot"]) as mount:
        os.chown(mount / "file", 33, 44)
        os.setxattr(mount / "file", acl.ACCESS, acl.with_named_user(1234, 6, owner=6, group=0))
        assert os.lstat(mount / "file").st_uid == 33
    with arena.mount(base) as mount:
        assert os.lstat(mount / "file").st_uid == 0
    with arena.mount(base, arguments=["--fakeroot"]) as mount:
        assert os.lstat(mount / "file").st_uid == 33
        with acting_as(1234):
            (mount / "file").write_bytes(b"changed")


def test_a_filesystem_without_attributes(arena: Arena) -> None:
    """Root's own database is believed there as before, and a directory of a user's is none of root's."""
    ram = arena.directory("ram")
    libc.mount("ramfs", str(ram), "ramfs", 0, "")
    try:
        base = arena.lower({"file": File(b"x")})
        with arena.mount(base, upper=ram / "upper", work=ram / "work", arguments=["--fakeroot"]) as mount:
            os.chown(mount / "file", 33, 44)
        with arena.mount(base, upper=ram / "upper", work=ram / "work") as mount:
            assert os.lstat(mount / "file").st_uid == 33
        os.chmod(ram / "upper", 0o777)
        with arena.mount(base, upper=ram / "upper", work=ram / "work") as mount:
            assert os.lstat(mount / "file").st_uid == 0
            assert IGNORED in mount.log()
    finally:
        libc.umount(str(ram))
