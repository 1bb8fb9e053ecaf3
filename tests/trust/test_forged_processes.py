"""What a process says of itself is anybody's word: its ids, and what the kernel says that it holds, are not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuseunion.engines.fuse import end_daemon
from fuseunion.linux import mountinfo
from fuseunion.linux.proc import processes
from fuseunion.mounting.checks import elsewhere
from tests.support.arena import Arena
from tests.trust.hostile import UID, land

pytestmark = [pytest.mark.root, pytest.mark.actors("root")]

_READY = "print('up', flush=True); import sys; sys.stdin.read()"

_OVERLAY = """
cd "$1" && mkdir -p l w m u && mount -t tmpfs none "$1/tmp" 2>/dev/null
mount -t overlay -o "lowerdir=$1/l,upperdir=$1/u,workdir=$1/w,userxattr" none "$1/m" || exit 1
mount --bind "$2" "$1/u" || exit 1
echo up
read line
"""


@contextmanager
def _running(command: Sequence[str | Path], uid: int) -> Iterator[int]:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", user=uid, group=uid, extra_groups=[]
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


def _writer_of(path: Path) -> str | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        return elsewhere.writer_of(fd)
    finally:
        os.close(fd)


def _forged(upper: Path) -> list[str | Path]:
    return [sys.executable, "-I", "-S", "-c", _READY, "-o", f"lowerdir=/x,upperdir={upper},workdir=/y", upper]


def test_arguments_of_somebody_else(arena: Arena) -> None:
    arena.upper.mkdir()
    with _running(_forged(arena.upper), UID):
        assert _writer_of(arena.upper) is None
        done = arena.place.fuseunion("chown", arena.upper, "--to", "root")
        assert done.returncode == 0, done.stderr
        os.chown(arena.upper, UID, UID)
        assert _writer_of(arena.upper) is not None, "its owner may be mounted there"


def test_an_overlay_in_somebody_elses_namespace(arena: Arena) -> None:
    """Its upperdir= is a path, at which anything can be mounted afterwards."""
    there = land(arena)
    arena.upper.mkdir()
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", _OVERLAY, "sh", there.home, arena.upper]
    with _running(command, UID) as pid:
        (overlay,) = [mount for mount in mountinfo.mounts(pid) if mount.target == f"{there.home}/m"]
        named = os.stat(f"/proc/{pid}/root{overlay.option('upperdir')}")
        assert os.path.samestat(named, arena.upper.stat()), "the forgery does not work"
        assert _writer_of(arena.upper) is None


def test_root_of_a_container_counts(arena: Arena) -> None:
    """The root of a user namespace may write to what belongs to an id of its map."""
    arena.upper.mkdir()
    user = arena.actor.user
    os.chown(arena.upper, user.subuids.first, user.subgids.first)
    program = [sys.executable, "-I", "-S", "-c", _READY, "-o", f"upperdir={arena.upper}", "x"]
    with _running(["unshare", "--map-root-user", "--map-auto", *program], user.uid):
        assert (_writer_of(arena.upper) or "").startswith("process ")


@pytest.mark.parametrize("told", [True, False], ids=["connection told", "connection not told"])
def test_a_mount_that_names_another_process(arena: Arena, monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    """Whoever serves a mount says which process does: `umount` would wait for it."""
    lower = arena.lower({})
    if not told:
        monkeypatch.setattr(processes, "_CONNECTION", "nothing that the kernel tells")
    with arena.mount(lower, upper=arena.root / "one", merged="one-merged") as one:
        entry = mountinfo.mount_at(str(one.merged))
        assert entry is not None
        with arena.mount(lower, upper=arena.root / "two", merged="two-merged") as two:
            for named, believed in ((one.daemon, True), (two.daemon, not told), (os.getpid(), False)):
                monkeypatch.setattr(end_daemon, "_daemon_pid", lambda path, named=named: str(named))
                daemon = end_daemon._open_daemon(str(one.merged), entry)
                if daemon is not None:
                    os.close(daemon.pidfd)
                assert (daemon is not None) is believed, named
            theirs = entry._replace(raw_options=b"rw,user_id=%d,group_id=%d" % (UID, UID))
            monkeypatch.setattr(end_daemon, "_daemon_pid", lambda path: str(two.daemon))
            assert end_daemon._open_daemon(str(one.merged), theirs) is None, "it belongs to another user"
