"""fsync(2) takes seconds: who needs it waits, nobody else does, and the end of a mount waits for what has begun."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.layers import File
from tests.support.mounts import FuseunionMount
from tests.support.waiting import wait_until

both = pytest.mark.actors("root", "user")

_CALLS = "fsync,fdatasync"


@contextmanager
def slow_disk(daemon: int, log: Path) -> Iterator[Callable[[], int]]:
    """Each fsync(2) and fdatasync(2) of a daemon takes a second and a half. Gives how many of them have ended."""
    delay = f"inject={_CALLS}:delay_enter=1500000"
    command = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={_CALLS}", "-e", delay, "-p", str(daemon)]

    def is_traced() -> bool:
        return "TracerPid:\t0\n" not in Path(f"/proc/{daemon}/status").read_text()

    with subprocess.Popen(command) as process:
        try:
            wait_until(is_traced, "strace")
            yield lambda: log.read_text().count("= 0")
        finally:
            process.send_signal(signal.SIGINT)


def _syncs_under_way(arena: Arena, threads: int) -> bool:
    """Whether a copy lies in work, finished but for the disk."""
    return len(list((arena.root / "work/work").iterdir())) >= threads


def _mount(arena: Arena) -> FuseunionMount:
    files = {f"d/{name}": File(b"data of " + name.encode()) for name in ("first", "a", "b", "c")}
    return arena.mount(arena.lower({**files, "other/f": File(b"other")}), work=arena.directory("work"))


@contextmanager
def _copied_before(arena: Arena) -> Iterator[FuseunionMount]:
    """A mount that knows that its lower shares no blocks, with the directory in the upper already."""
    with _mount(arena) as mount:
        (mount / "d/first").chmod(0o600)
        (mount / "other/f").stat()  # who looks for a name waits for who renames one in the same directory
        yield mount


def _others_go_on(mount: FuseunionMount, waiting: list[Future[None]]) -> None:
    """Many things that need no disk, in a directory of which the kernel holds no lock for those who wait."""
    for number in range(20):
        (mount / f"other/new{number}").write_bytes(b"new")
        assert (mount / f"other/new{number}").read_bytes() == b"new"
        assert (mount / "other/f").read_bytes() == b"other"
        os.listdir(mount / "other")
    assert not any(each.done() for each in waiting)


@both
def test_a_copy_up(arena: Arena) -> None:
    """Of a file whose mode is changed, and one that is written to, and what one looks at meanwhile."""
    with (
        _copied_before(arena) as mount,
        slow_disk(mount.daemon, arena.root / "log") as ended,
        ThreadPoolExecutor(4) as pool,
    ):

        def append() -> None:
            with open(mount / "d/b", "ab") as file:
                file.write(b"+")

        waiting = [pool.submit((mount / "d/a").chmod, 0o640), pool.submit(append)]
        wait_until(lambda: _syncs_under_way(arena, 2), "the copies")
        assert oct((mount / "d/a").stat().st_mode & 0o777) != "0o640"
        _others_go_on(mount, waiting)
        for each in waiting:
            each.result()
        assert ended() >= 2
        assert oct((mount / "d/a").stat().st_mode & 0o777) == "0o640"
        assert (mount / "d/b").read_bytes() == b"data of b+"


@both
def test_fsync(arena: Arena) -> None:
    """Of a file and of a directory."""
    with (
        _copied_before(arena) as mount,
        slow_disk(mount.daemon, arena.root / "log") as ended,
        ThreadPoolExecutor(4) as pool,
    ):
        with open(mount / "d/first", "ab") as file:
            file.write(b"+")
            file.flush()
            directory = os.open(mount / "d", os.O_RDONLY)
            waiting = [pool.submit(os.fsync, fd) for fd in (file.fileno(), directory)]
            _others_go_on(mount, waiting)
            for each in waiting:
                each.result()
            os.close(directory)
        assert ended() >= 2


@both
def test_a_directory_is_renamed(arena: Arena) -> None:
    """What lies in it is put on disk together."""
    with _copied_before(arena) as mount, slow_disk(mount.daemon, arena.root / "log"), ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(os.rename, mount / "d", mount / "moved")]
        wait_until(lambda: _syncs_under_way(arena, 3), "the copies")
        _others_go_on(mount, waiting)
        waiting[0].result()
        assert {path.name: path.read_bytes() for path in (mount / "moved").iterdir()} == {
            name: b"data of " + name.encode() for name in ("first", "a", "b", "c")
        }


@pytest.mark.actors("root")  # fusermount3, which unmounts for a user, has no privileges under strace
def test_the_end(arena: Arena) -> None:
    """A signal ends the mount: the copy is there as a whole or not at all, and nothing is left in work."""
    mount = _mount(arena)
    mount.start()
    (mount / "d/first").chmod(0o600)
    with slow_disk(mount.daemon, arena.root / "log"), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit((mount / "d/a").chmod, 0o640)
        wait_until(lambda: _syncs_under_way(arena, 1), "the copy")
        os.kill(mount.daemon, signal.SIGTERM)
        waiting.exception()
        wait_until(lambda: not Path(f"/proc/{mount.daemon}").exists(), "the end of the daemon", 30)
    mount.check_log()
    assert not list((arena.root / "work").glob("work/*"))
    copy = arena.upper / "d/a"
    assert not copy.exists() or (copy.read_bytes() == b"data of a" and copy.stat().st_mode & 0o777 == 0o640)
