"""A lock that somebody else took keeps nobody out, and two mounts of ours never share an upper all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.layers import File
from tests.trust.hostile import UID

pytestmark = [pytest.mark.root, pytest.mark.actors("root", "user")]

_HOLD = """
import fcntl, os, sys
for path in sys.argv[2:]:
    fcntl.flock(os.open(path, os.O_RDONLY), int(sys.argv[1]))
if os.fork():  # who took the lock has ended, as after the fork of a daemon
    os._exit(0)
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def _locked(*paths: Path, shared: bool = False, uid: int = UID) -> Iterator[None]:
    """Somebody holds flock(2) on directories."""
    command = [sys.executable, "-I", "-S", "-c", _HOLD, "1" if shared else "2", *map(str, paths)]
    ids = {"user": uid, "group": uid, "extra_groups": []} if uid != os.geteuid() else {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", **ids) as holder:  # type: ignore[call-overload]
        assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
        yield
        assert holder.stdin is not None
        holder.stdin.close()
        assert holder.stdout.read() == b""


def _mark(arena: Arena) -> str:
    """The attribute that says with which work directory the upper was mounted (checks/in_use.py)."""
    prefix = "trusted" if os.geteuid() == 0 and arena.upper.stat().st_uid == 0 else "user"
    return f"{prefix}.overlay.fuseunion.mounted"


@pytest.fixture
def base(arena: Arena) -> Path:
    """A lower, and upper and work directory of the actor that everybody may read."""
    for name in ("upper", "work", "work2"):
        arena.actor.own(arena.directory(name))
    lower = arena.root / "base"
    lower.mkdir()
    (lower / "file").write_text("lower")
    for path in (lower, lower / "file"):
        arena.actor.own(path)
    return lower


@pytest.fixture
def locked(request: pytest.FixtureRequest, arena: Arena, base: Path) -> Iterator[None]:
    """An attacker holds all three."""
    paths = [arena.root / name for name in ("upper", "work", "work2")]
    with _locked(*paths, shared=getattr(request, "param", "shared") == "shared"):
        yield


def _refused(arena: Arena, base: Path, work: str, *, because: str) -> None:
    done = arena.place.fuseunion("--work", arena.root / work, base, arena.upper, arena.directory("other"))
    assert done.returncode == 4, f"{done.returncode}: {done.stderr}"
    assert len(done.stderr.splitlines()) == 1 and because in done.stderr, done.stderr


@pytest.mark.parametrize("locked", ["shared", "exclusive"], indirect=True)
def test_a_readers_lock(arena: Arena, base: Path, locked: None) -> None:
    with arena.mount(base, work=arena.root / "work") as mount:
        (mount / "file").write_text("changed")
        assert mount.log().count("is ignored: it is held by ") == 2
    assert (arena.upper / "file").read_text() == "changed"
    mark = os.getxattr(arena.upper, _mark(arena))
    assert mark == b"%d" % (arena.root / "work").stat().st_ino


def test_two_mounts_of_ours_beside_it(arena: Arena, base: Path, locked: None) -> None:
    with arena.mount(base, work=arena.root / "work2"):  # when this one has ended, its mark is in no way
        pass
    os.removexattr(arena.upper, _mark(arena))
    with arena.mount(base, work=arena.root / "work") as mount:
        _refused(arena, base, "work", because=f"(process {mount.daemon}, ")
        _refused(arena, base, "work2", because="may be in use by another live mount with another work directory")


def test_two_mounts_of_ours_when_it_has_gone(arena: Arena, base: Path) -> None:
    """The first could not have the lock, so the second can: the mark on UPPER tells it."""
    if arena.actor.role.value != "root":
        return _as_user_when_it_has_gone(arena, base)
    with _locked(arena.upper):
        mount = arena.mount(base, work=arena.root / "work")
        mount.start()
    try:
        _refused(arena, base, "work2", because="may be in use by another live mount with another work directory")
    finally:
        mount.stop()
    with arena.mount(base, work=arena.root / "work2"):
        pass
    return None


def _as_user_when_it_has_gone(arena: Arena, base: Path) -> None:
    """The user cannot act as another one: the mark is written as it would have been."""
    os.setxattr(arena.upper, _mark(arena), b"%d unlocked" % (arena.root / "work").stat().st_ino)
    _refused(arena, base, "work2", because="may be in use by another live mount with another work directory")
    with arena.mount(base, work=arena.root / "work"):
        pass
    with arena.mount(base, work=arena.root / "work2"):
        pass


def test_after_a_kill(arena: Arena, base: Path, locked: None) -> None:
    mount = arena.mount(base, work=arena.root / "work")
    mount.start()
    (mount / "file").write_text("changed")
    mount.kill()
    with arena.mount(base, work=arena.root / "work") as again:
        assert (again / "file").read_text() == "changed"


def test_without_it_a_second_mount_is_refused_by_name(arena: Arena, base: Path) -> None:
    with arena.mount(base, work=arena.root / "work") as mount:
        for work in ("work", "work2"):
            _refused(arena, base, work, because=f"upper directory '{arena.upper}' is in use by another live fuseunion")
            _refused(arena, base, work, because=f"(process {mount.daemon}, ")
    # A mount that was killed with another work directory is in nobody's way.
    mount = arena.mount(base, work=arena.root / "work")
    mount.start()
    mount.kill()
    with arena.mount(base, work=arena.root / "work2"):
        pass


@pytest.mark.actors("root")
def test_a_lock_of_the_owner_counts(arena: Arena, base: Path) -> None:
    os.chown(arena.upper, UID, UID)
    with _locked(arena.upper):
        _refused(arena, base, "work", because="is in use by another live fuseunion mount (process ")


@pytest.mark.actors("root")
def test_chown(arena: Arena, base: Path, locked: None) -> None:
    (arena.upper / "file").write_text("upper")
    os.chown(arena.upper / "file", 5, 5)
    done = arena.place.fuseunion("chown", arena.upper, "--to", "root", "--work", arena.root / "work")
    assert done.returncode == 0, done.stderr
    assert (arena.upper / "file").stat().st_uid == 0
    with arena.mount(base, work=arena.root / "work"):
        done = arena.place.fuseunion("chown", arena.upper, "--to", "5:5", "--work", arena.root / "work")
        assert done.returncode == 4, done.stderr


@pytest.mark.actors("root")
def test_a_ranch(arena: Arena) -> None:
    """Its state can be searched by all, and so be locked by nobody but its owner."""
    lower, merged = arena.lower({"file": File(b"lower")}), arena.directory("merged")
    arena.upper.mkdir()
    with _locked(arena.upper):
        assert arena.place.fuseunion("--engine", "ranch", lower, arena.upper, merged).returncode == 0
        state = arena.root / ".upper.fuseunion-ranch"
        with pytest.raises(AssertionError), _locked(state):
            pass
        (merged / "new").write_text("new")
        assert arena.place.fuseunion("umount", merged).returncode == 0
    assert (arena.upper / "new").read_text() == "new"
