"""`--mine`: a tree of somebody else can be changed as if it were one's own, and nothing of it becomes dangerous."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.layers import File
from tests.support.user import OTHER_GROUP

WARNING = "so you can change little but its top directory; with --mine everything shows as yours"


@pytest.fixture
def foreign(request: pytest.FixtureRequest, scratch: Path) -> Path:
    """A tree of root's, with what root's trees have."""
    lower = scratch / f"foreign-{os.getpid()}-{request.node.name.replace('/', '-')}"
    for path, mode, data in (
        ("lib/python/module", 0o644, b"module"),
        ("bin/su", 0o4755, b"program"),
        ("bin/group", 0o2755, b"program"),
        ("etc/shadow", 0o600, b"secret"),
        ("closed/file", 0o644, b"closed"),
    ):
        file = lower / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(mode)
    (lower / "closed").chmod(0o700)
    (lower / "group").mkdir()
    os.chown(lower / "group", 0, OTHER_GROUP)
    subprocess.run(["setcap", "cap_net_raw+ep", lower / "lib/python/module"], check=True)
    return lower


def _everything_is_mine(root: Path) -> bool:
    mine = (os.geteuid(), os.getegid())
    paths = [root, *(path for path in root.rglob("*") if os.access(path.parent, os.R_OK))]
    return all((path.lstat().st_uid, path.lstat().st_gid) == mine for path in paths)


@pytest.mark.actors("user", "lone")
def test_a_tree_of_roots(arena: Arena, foreign: Path) -> None:
    """What is EACCES without it works, below the top too; LOWER stays, UPPER is the user's own and plain."""
    arena.guard(foreign)
    plain = arena.mount(foreign, upper=arena.root / "plain", merged="plain-merged")
    with plain, pytest.raises(PermissionError):
        (plain / "lib/new").mkdir()
    with arena.mount(foreign, arguments=["--mine"]) as mount:
        assert _everything_is_mine(mount.merged)
        (mount / "lib/new").mkdir()
        (mount / "lib/new/file").write_bytes(b"new")
        with (mount / "lib/python/module").open("ab") as file:
            file.write(b" changed")
        (mount / "bin/su").chmod(0o4711)
        (mount / "bin/group").rename(mount / "bin/renamed")
        (mount / "lib/python").rename(mount / "lib/snake")
        with pytest.raises(PermissionError):
            (mount / "etc/shadow").read_bytes()
        with pytest.raises(PermissionError):
            os.listdir(mount / "closed")
        (mount / "group/new").touch()
        os.chown(mount / "lib/new", os.geteuid(), os.getegid())
        assert _everything_is_mine(mount.merged)
        assert (mount / "lib/snake/module").read_bytes() == b"module changed"
    for path in arena.upper.rglob("*"):
        st = path.lstat()
        assert st.st_uid == os.geteuid() and st.st_gid in (os.getegid(), *os.getgroups())
    assert "security.capability" not in os.listxattr(arena.upper / "lib/snake/module")
    assert not (arena.upper / "bin/renamed").stat().st_mode & (stat.S_ISUID | stat.S_ISGID)
    # Another mount of it, without the option, shows what is the user's and what is root's.
    with arena.mount(foreign) as mount:
        assert (mount / "lib/snake/module").read_bytes() == b"module changed"
        assert (mount / "etc").stat().st_uid == (foreign / "etc").stat().st_uid


@pytest.mark.actors("user")
def test_a_copy_does_not_run_as_its_maker(arena: Arena, foreign: Path) -> None:
    """A set-user-ID program of root's that is copied up is not one of the user's; the mount would not run it anyway."""
    with arena.mount(foreign, arguments=["--mine"]) as mount:
        assert (mount / "bin/su").stat().st_mode & stat.S_ISUID
        os.utime(mount / "bin/su", (1, 1))
        (mount / "bin/su").rename(mount / "bin/moved")
        assert os.statvfs(mount.merged).f_flag & os.ST_NOSUID
    assert (arena.upper / "bin/moved").stat().st_mode & 0o7777 == 0o755


@pytest.mark.actors("root")
def test_for_root(arena: Arena) -> None:
    """Everything shows as root's, is stored as whose it is, and runs with nobody's rights."""
    lower = arena.lower({"d/f": File(b"x", mode=0o4755, uid=1234, gid=1234)})
    with arena.mount(lower, arguments=["--mine"]) as mount:
        assert _everything_is_mine(mount.merged)
        (mount / "d/f").rename(mount / "d/g")
        assert os.statvfs(mount.merged).f_flag & os.ST_NOSUID
    st = (arena.upper / "d/g").stat()
    assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (1234, 1234, 0o4755)


@pytest.mark.actors("root", "user", "userns")
def test_the_warning(arena: Arena, foreign: Path) -> None:
    """One line for a person, where it is true; nothing for a program."""
    merged = arena.directory("merged")
    expected = {"root": 0, "user": 1, "userns": 1}[arena.actor.role.value]
    for arguments, count in (
        ([foreign, arena.upper, merged], expected),
        (["--mine", foreign, arena.upper, merged], 0),
        (["-o", f"lowerdir={foreign},upperdir={arena.upper}", merged], 0),
    ):
        done = arena.place.fuseunion(*map(str, arguments))
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stderr.splitlines() if WARNING in line]
        assert len(lines) == count, (arguments, done.stderr)
        assert all(line.startswith(f"fuseunion: warning: lower directory '{foreign}' belongs") for line in lines)
        assert arena.place.fuseunion("umount", str(merged)).returncode == 0
    done = arena.place.fuseunion("doctor", str(foreign), str(arena.upper), str(merged))
    assert done.stdout.count(WARNING) == expected


@pytest.mark.parametrize(
    ("options", "with_what"),
    [
        (["--uid-map", "0:0:1"], "id maps"),
        (["--gid-map", "0:0:1"], "id maps"),
        (["-o", "squash_to_root"], "squash options"),
        (["-o", "squash_to_uid=5"], "squash options"),
        (["--fakeroot"], "--fakeroot (xattr_permissions=)"),
    ],
)
@pytest.mark.actors("root", "user")
def test_what_contradicts_it(arena: Arena, options: list[str], with_what: str) -> None:
    lower, merged = arena.lower({}), arena.directory("merged")
    done = arena.place.fuseunion("--mine", *options, str(lower), str(arena.upper), str(merged))
    assert done.returncode == 2 and not arena.upper.exists()
    assert done.stderr == (
        f"fuseunion: --mine and {with_what} contradict each other about owners; leave one of them out\n"
    )


@pytest.mark.parametrize("engine", ["kernel", "ranch"])
@pytest.mark.actors("root")
def test_engines_without_a_daemon(arena: Arena, engine: str) -> None:
    lower, merged = arena.lower({}), arena.directory("merged")
    done = arena.place.fuseunion("--mine", "--engine", engine, str(lower), str(arena.upper), str(merged))
    assert done.returncode == 5 and "it cannot show everything as yours (--mine)" in done.stderr
