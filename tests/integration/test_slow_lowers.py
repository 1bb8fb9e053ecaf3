"""A lower whose filesystem keeps everybody waiting: here another mount, whose daemon is stopped for a while."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.arena import Arena
from tests.support.layers import File
from tests.support.mountinfo import mount_at
from tests.support.mounts import FuseunionMount
from tests.support.waiting import wait_until

DATA = os.urandom(8 << 20)
FAR = 6 << 20
"""Not read before, nor ahead, when the beginning of the file was."""


@contextmanager
def stopped(mount: FuseunionMount) -> Iterator[None]:
    """The daemon of a mount answers nothing in the block."""
    os.kill(mount.daemon, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(mount.daemon, signal.SIGCONT)


class Reading:
    """A read in a thread of its own: of a file that is open, so that nothing but data is asked for."""

    def __init__(self, path: Path) -> None:
        self.outcome: bytes | int = -1
        self._fd = os.open(path, os.O_RDONLY)
        os.read(self._fd, 10)
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        try:
            self.outcome = os.pread(self._fd, 10, FAR)
        except OSError as error:
            self.outcome = error.errno or 0

    def begin(self, daemon: int) -> None:
        """Returns when a thread of the daemon waits for it, as for a disk (proc_pid_stat(5), D)."""
        self._thread.start()
        threads = Path(f"/proc/{daemon}/task")
        wait_until(lambda: any(b") D " in (one / "stat").read_bytes() for one in threads.iterdir()), "a waiting thread")

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def close(self) -> None:
        self._thread.join()
        with suppress(OSError):  # of what the daemon would be told, which may have ended
            os.close(self._fd)


def test_a_read_that_waits_holds_up_nobody(arena: Arena) -> None:
    slow = arena.mount(arena.lower({"far": File(DATA)}), upper=arena.root / "slow-upper", merged="slow")
    with slow, arena.mount(arena.lower({"near": File(b"near")}), slow.merged) as mount:
        (mount / "new").touch()
        reading = Reading(mount / "far")
        with stopped(slow):
            reading.begin(mount.daemon)
            assert (mount / "near").read_bytes() == b"near"
            (mount / "new").write_bytes(b"new")
            assert (mount / "new").read_bytes() == b"new"
            assert not reading.ended
        reading.close()
        assert reading.outcome == DATA[FAR : FAR + 10]


@pytest.mark.actors("root", "userns")
def test_the_end_waits_for_a_read(arena: Arena) -> None:
    """The reply is for the mount; the number of its descriptor is somebody else's, once it is closed.

    An ordinary user's daemon starts fusermount3, which closes what it inherits: a flush, which waits for the lower too.
    """
    slow = arena.mount(arena.lower({"far": File(DATA)}), upper=arena.root / "slow-upper", merged="slow")
    with slow:
        mount = arena.mount(slow.merged)
        mount.start()
        reading = Reading(mount / "far")
        with stopped(slow):
            reading.begin(mount.daemon)
            os.kill(mount.daemon, signal.SIGTERM)
            wait_until(lambda: mount_at(mount.merged) is None, "the end of the mount")
            assert mount.daemon in processes.with_token(arena.place.token)
        reading.close()
        assert reading.outcome == DATA[FAR : FAR + 10]
        wait_until(lambda: mount.daemon not in processes.with_token(arena.place.token), "the daemon's end")
        mount.check_log()
