"""Apptainer's way: `-f`, ready when mountinfo shows the target, ended by unmounting or by SIGTERM.

Apptainer 1.x (internal/pkg/image/driver/imagedriver.go) passes allow_other, lowerdir=, upperdir=, workdir= and noacl
(with `ro` when there is no upper); it polls /proc/self/mountinfo; at the end it syncs, unmounts, and waits one second
for the exit before SIGTERM. What is on stderr is reported to the user when the exit code is not 0.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support import libc
from tests.support.arena import Arena
from tests.support.caller import EXIT_LIMIT, WRITE_LIMIT, Caller
from tests.support.layers import File
from tests.support.mountinfo import mount_at
from tests.support.waiting import wait_until

pytestmark = pytest.mark.actors("root", "userns")


@contextmanager
def in_foreground(caller: Caller, options: str) -> Iterator[subprocess.Popen[str]]:
    """The program with -f, mounted on `merged`; killed if the test fails."""
    arena = caller.arena
    target = arena.directory("merged")
    with subprocess.Popen(
        [caller.program, "-f", "-o", options, target],
        cwd="/",
        env=arena.place.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    ) as process:
        try:
            wait_until(lambda: mount_at(target) or process.poll() is not None, "the mount", 10)
            yield process
        except BaseException:
            process.kill()
            libc.umount(str(target), libc.MNT_DETACH)
            raise


def assert_ended(process: subprocess.Popen[str], arena: Arena, limit: float = EXIT_LIMIT) -> None:
    output, _ = process.communicate(timeout=limit)
    assert (process.returncode, output) == (0, "")
    assert mount_at(arena.root / "merged") is None


def test_ends_with_the_unmount(caller: Caller, arena: Arena) -> None:
    lower, upper, work = arena.lower({"file": File(b"x")}), arena.directory("upper"), arena.directory("work")
    options = f"allow_other,lowerdir={lower},upperdir={upper},workdir={work},noacl"
    with in_foreground(caller, options) as process:
        merged = arena.root / "merged"
        (merged / "file").write_text("y")
        descriptor = os.open(merged, os.O_RDONLY)
        libc.syncfs(descriptor)
        os.close(descriptor)
        libc.umount(str(merged))
        assert_ended(process, arena, WRITE_LIMIT)


def test_read_only(caller: Caller, arena: Arena) -> None:
    lowers = [arena.lower({"file": File(b"upper one")}), arena.lower({"file": File(b"lower one")})]
    options = f"allow_other,ro,lowerdir={lowers[0]}:{lowers[1]},noacl"
    with in_foreground(caller, options) as process:
        merged = arena.root / "merged"
        assert (merged / "file").read_text() == "upper one"
        libc.umount(str(merged))
        assert_ended(process, arena)


def test_ends_with_sigterm(caller: Caller, arena: Arena) -> None:
    lower = arena.lower({"file": File(b"x")})
    with in_foreground(caller, f"allow_other,ro,lowerdir={lower},noacl") as process:
        process.send_signal(signal.SIGTERM)
        assert_ended(process, arena)


def test_ends_after_a_lazy_unmount(caller: Caller, arena: Arena) -> None:
    """The last resort of both Apptainer and containers/storage."""
    lower = arena.lower({"file": File(b"x")})
    with in_foreground(caller, f"allow_other,ro,lowerdir={lower},noacl") as process:
        libc.umount(str(arena.root / "merged"), libc.MNT_DETACH)
        assert_ended(process, arena)
