"""What is mounted at MERGED before a mount, and what is left of it somewhere after an umount."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuseunion.engines import choose
from fuseunion.linux import mountinfo as linux_mountinfo
from tests.support import libc, processes
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.layers import File
from tests.support.mountinfo import mount_at
from tests.support.waiting import wait_until


def run(arena: Arena, *arguments: str | Path, code: int = 0) -> str:
    """Run a command, check its exit code and that it says at most one line; returns that line."""
    result = arena.place.fuseunion(*arguments, cwd=arena.root)
    assert result.returncode == code, result.stderr
    assert result.stderr.count("\n") == (1 if code else 0), result.stderr
    return result.stderr.rstrip("\n")


def kill_daemon(arena: Arena) -> None:
    (pid,) = processes.with_token(arena.place.token)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes.with_token(arena.place.token), "the daemon's end")


def as_program(arena: Arena, lower: Path, upper: str, merged: Path) -> list[str | Path]:
    """As podman calls its mount program."""
    words = f"lowerdir={lower},upperdir={arena.root / upper},workdir={arena.root / upper}-work"
    return ["-o", words, merged]


# -- before a mount ----------------------------------------------------------------------------------------------------


def test_a_person_does_not_mount_over_a_live_mount(arena: Arena) -> None:
    lower, merged = arena.lower({"f": File(b"x")}), arena.directory("merged")
    run(arena, lower, "upper", merged)
    for arguments in ([lower, "upper", merged], [lower, "other", merged], ["--read-only", lower, merged]):
        said = run(arena, *arguments, code=4)
        expected = f"merged directory '{merged}' is a live mount of fuseunion; unmount it first: "
        assert said == f"fuseunion: {expected}fuseunion umount '{merged}'"
    assert not (arena.root / "other").exists()
    assert (merged / "f").read_bytes() == b"x"
    run(arena, "umount", merged)
    assert mount_at(merged) is None


@pytest.mark.actors("root", "userns")
def test_a_union_of_a_union_may_take_its_place(arena: Arena) -> None:
    """MERGED may be a layer, also when that is a mount: the layers are opened before it is covered."""
    lower, merged = arena.lower({"f": File(b"x")}), arena.directory("merged")
    run(arena, lower, "upper", merged)
    run(arena, merged, "other", merged)
    (merged / "new").touch()
    run(arena, "umount", merged)
    assert os.listdir(merged) == ["f"]
    run(arena, "umount", merged)


def test_a_dead_mount_is_replaced_for_a_container_engine(arena: Arena) -> None:
    """Its storage knows the mount point only; nobody would take away what our dead daemon left."""
    lower, merged = arena.lower({"f": File(b"x")}), arena.directory("merged")
    run(arena, *as_program(arena, lower, "upper", merged))
    (merged / "new").write_bytes(b"kept")
    kill_daemon(arena)
    assert "is a dead mount of fuseunion; remove it with: fuseunion umount" in run(arena, lower, "u", merged, code=3)
    run(arena, *as_program(arena, lower, "upper", merged))
    assert (merged / "new").read_bytes() == b"kept"
    run(arena, "umount", merged)
    assert mount_at(merged) is None, "nothing lies beneath"


@pytest.mark.actors("root")
def test_the_dead_mount_of_somebody_else_stays(arena: Arena) -> None:
    """Another user's, or another program's: root, too, leaves it where it is."""
    lower, merged = arena.lower({"f": File(b"x")}), arena.directory("merged")
    mine = f"user_id={os.getuid()},group_id={os.getgid()}"
    for kind, owner, says in (
        ("fuse.fuseunion", "user_id=1,group_id=1,allow_other", "is a dead mount; remove it with: fuseunion umount"),
        ("fuse.sshfs", mine, "is a dead mount of 'fuse.sshfs'; remove it with: fusermount3 -uz"),
    ):
        fd = os.open("/dev/fuse", os.O_RDWR)
        libc.mount("x", str(merged), kind, 0, f"fd={fd},rootmode=40000,{owner}")
        os.close(fd)
        mount = mount_at(merged)
        assert says in run(arena, *as_program(arena, lower, "upper", merged), code=3)
        assert mount_at(merged) == mount
        libc.umount(str(merged))


@pytest.mark.actors("root")
def test_only_the_mount_that_was_looked_at_is_taken_away(arena: Arena) -> None:
    """Somebody may exchange a directory above it meanwhile: another mount is at the path then."""
    lower, merged = arena.lower({"f": File(b"x")}), arena.directory("merged")
    with arena.mount(lower):
        entry = linux_mountinfo.mount_at(str(merged))
        assert entry is not None
        choose._detach(str(merged), entry.mount_id + 1)
        assert linux_mountinfo.mount_at(str(merged)) == entry


@pytest.mark.actors("root")
def test_the_mount_of_another_user_stays(arena: Arena) -> None:
    user = arena.actor.user
    become = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups", "--"]
    with arena.mount(arena.lower({"f": File(b"x")})) as mount:
        for lazy in ([], ["--lazy"]):
            command = arena.place.interpreter.command("umount", *lazy, str(mount.merged))
            done = subprocess.run(
                [*become, *command], env=arena.place.environment(), capture_output=True, text=True, cwd="/"
            )
            expected = f"fuseunion: '{mount.merged}' was mounted by another user (0); only that user and root can "
            assert (done.returncode, done.stderr) == (1, f"{expected}unmount it\n")
        assert mount_at(mount.merged) is not None


# -- after an umount ---------------------------------------------------------------------------------------------------


@contextmanager
def connections_shown() -> Iterator[None]:
    """The kernel's list of FUSE connections, which not every machine has mounted."""
    libc.mount("fusectl", "/sys/fs/fuse/connections", "fusectl", 0, "")
    try:
        yield
    finally:
        libc.umount("/sys/fs/fuse/connections")


@pytest.mark.actors("root")
@pytest.mark.parametrize("listed", [False, True])
def test_umount_says_soon_that_somebody_unseen_has_it(arena: Arena, listed: bool) -> None:
    """A user unmounts, and a process of root keeps a copy of the mount in another mount namespace."""
    user = arena.actor.user
    lower, merged = arena.lower({"f": File(b"x")}), arena.directory("merged")
    for path in (arena.root, merged):
        os.chown(path, user.uid, user.gid)

    def as_user(*arguments: str) -> subprocess.CompletedProcess[str]:
        become = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups", "--"]
        command = [*become, *arena.place.interpreter.command(*arguments)]
        return subprocess.run(command, env=arena.place.environment(), capture_output=True, text=True, cwd="/")

    assert as_user(str(lower), str(arena.root / "upper"), str(merged)).returncode == 0
    (daemon,) = processes.with_token(arena.place.token)
    holding = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 1000"]
    with subprocess.Popen(holding, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        begun = time.monotonic()
        if listed:
            with connections_shown():
                done = as_user("umount", str(merged))
        else:
            done = as_user("umount", str(merged))
        taken = time.monotonic() - begun
        other.kill()
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert f"'{merged}' is unmounted here, but its daemon (process {daemon}) still serves it" in done.stderr
    assert taken < 15
    wait_until(lambda: not processes.with_token(arena.place.token), "the daemon's end")
    assert arena.actor.role is Role.ROOT
