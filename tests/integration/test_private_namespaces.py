"""Mounts in a mount namespace that ends: they end with it, and leave the upper in order."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.layers import File
from tests.support.waiting import wait_until

pytestmark = pytest.mark.actors("root", "user", "userns", "lone")


def _in_private(arena: Arena, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a mount namespace of its own, as somebody who may mount there."""
    arena.directory("merged")
    unshare = ["unshare", "--mount", "--propagation", "private"]
    if arena.actor.role is Role.USER:
        unshare += ["--user", "--map-root-user"]
    program = " ".join(arena.place.interpreter.command())
    log = arena.place.logs / "private.log"
    return subprocess.run(
        [*unshare, "bash", "-euc", script.replace("MOUNT", f"{program} --log-file {log} lower upper merged")
         .replace("FUSEUNION", program)],
        cwd=arena.root,
        env=arena.place.environment(),
        capture_output=True,
        text=True,
        timeout=50,
    )  # fmt: skip


def _ended(arena: Arena) -> bool:
    return not processes.with_token(arena.place.token)


def _check(arena: Arena, done: subprocess.CompletedProcess[str], output: str) -> None:
    assert (done.returncode, done.stdout) == (0, output), done.stderr
    wait_until(lambda: _ended(arena), "the end of the daemon")
    assert sorted(os.listdir(arena.root)) == ["logs", "lower", "merged", "upper"]
    log = Path(arena.place.logs / "private.log").read_text()
    assert "Traceback" not in log and "ERROR" not in log and "WARNING" not in log, log


def test_the_mount_ends_with_the_last_process(arena: Arena) -> None:
    """Nobody unmounts, nobody could."""
    arena.lower({"f": File(b"old\n")}, "lower")
    _check(arena, _in_private(arena, "MOUNT; echo new >merged/g; cat merged/f"), "old\n")
    assert (arena.root / "upper/g").read_text() == "new\n"
    with arena.mount(arena.root / "lower") as mount:
        assert (mount / "g").read_text() == "new\n"


def test_it_lives_as_long_as_one_is_left(arena: Arena) -> None:
    """Also one that is only in a namespace that was copied later."""
    arena.lower({"f": File(b"old\n")}, "lower")
    go = arena.root / "logs/go"
    os.mkfifo(go)
    script = f"MOUNT; unshare --mount sh -c 'read _ <{go}; cat merged/f >{arena.root}/logs/seen' >/dev/null 2>&1 &"
    done = _in_private(arena, script)
    assert done.returncode == 0, done.stderr
    go.write_text("go\n")
    _check(arena, done, "")
    assert (arena.root / "logs/seen").read_text() == "old\n"


def test_umount_and_signals_reach_it(arena: Arena) -> None:
    """The daemon unmounts in the namespace that it has left."""
    arena.lower({"f": File(b"old\n")}, "lower")
    pid = "$(getfattr --only-values -n user.fuseunion.pid merged 2>/dev/null)"
    script = f"""
        MOUNT; FUSEUNION umount merged; ls merged
        MOUNT; daemon={pid}; kill -TERM $daemon
        while test -e /proc/$daemon; do :; done
        ls merged
    """
    _check(arena, _in_private(arena, script), "")


def test_it_keeps_nothing_else_busy(arena: Arena) -> None:
    """A filesystem that was there when it was mounted can be unmounted, and then has gone."""
    arena.lower({"f": File(b"old\n")}, "lower")
    for name in ("lower2", "merged2"):
        arena.directory(name)
    script = "FUSEUNION --read-only lower lower2; MOUNT; FUSEUNION umount lower2; rmdir lower2 merged2; cat merged/f"
    _check(arena, _in_private(arena, script), "old\n")
