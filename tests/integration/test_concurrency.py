"""Many requests at once: a long copy stalls nobody, and is made once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import libc
from tests.support.arena import Arena
from tests.support.layers import File

SIZE = 256 << 20


@contextmanager
def _large_lower(arena: Arena) -> Iterator[Path]:
    """A lower on a filesystem of its own: nothing can be cloned from it, so that a copy takes its time."""
    place = arena.directory("large")
    libc.mount("tmpfs", str(place), "tmpfs", 0, "mode=755")
    try:
        lower = arena.lower({"small/f": File(b"s")}, "large/lower")
        block = os.urandom(1 << 20)
        with open(lower / "big", "wb") as file:
            for _ in range(SIZE >> 20):
                file.write(block)
        arena.guard(lower)
        yield lower
        arena.release(lower)
    finally:
        libc.umount(str(place))


def _written(pid: int) -> int:
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["wchar"])


@pytest.mark.actors("root")
def test_other_requests_go_on_during_a_copy(arena: Arena) -> None:
    """While a large file is copied up, files are made, read and listed, and the big one is read."""
    with _large_lower(arena) as lower, arena.mount(lower) as mount:
        done = threading.Event()

        def write() -> float:
            start = time.monotonic()
            with open(mount / "big", "r+b", buffering=0) as file:
                file.write(b"W")
            done.set()
            return time.monotonic() - start

        with ThreadPoolExecutor(1) as pool:
            writer = pool.submit(write)
            steps, longest = 0, 0.0
            while not done.is_set():
                start = time.monotonic()
                path = mount / f"small/{steps}"
                path.write_bytes(b"x")
                assert path.read_bytes() == b"x"
                (mount / "big").stat()
                os.listdir(mount / "small")
                if not done.is_set():
                    longest = max(longest, time.monotonic() - start)
                    steps += 1
            copying = writer.result()
        assert steps >= 3 and longest < copying / 2, (steps, longest, copying)
        with open(mount / "big", "rb") as file:
            assert file.read(1) == b"W"
            assert file.seek(0, os.SEEK_END) == SIZE


@pytest.mark.actors("root")
def test_two_writers_wait_for_one_copy(arena: Arena) -> None:
    """Writers, a truncation and a chmod that come together cause one copy, and all of them take effect."""
    with _large_lower(arena) as lower, arena.mount(lower) as mount:
        before = _written(mount.daemon)
        start = threading.Barrier(4)

        def write(offset: int) -> None:
            with open(mount / "big", "r+b", buffering=0) as file:
                start.wait()
                os.pwrite(file.fileno(), b"W", offset)

        def chmod() -> None:
            start.wait()
            (mount / "big").chmod(0o600)

        with ThreadPoolExecutor(4) as pool:
            for job in [*(pool.submit(write, offset) for offset in (0, SIZE // 2, SIZE - 1)), pool.submit(chmod)]:
                job.result()
        assert _written(mount.daemon) - before < SIZE * 3 // 2
        with open(mount / "big", "rb") as file:
            for offset in (0, SIZE // 2, SIZE - 1):
                assert os.pread(file.fileno(), 1, offset) == b"W"
        assert (mount / "big").stat().st_mode & 0o777 == 0o600


def test_many_threads(arena: Arena) -> None:
    """Threads that create, rename, list, copy up and delete in shared directories leave what they made."""
    lower = arena.lower({f"d/{number}": File(b"lower") for number in range(200)})
    with arena.mount(lower) as mount:

        def work(worker: int) -> None:
            for number in range(worker, 200, 4):
                path = mount / f"d/{number}"
                with open(path, "ab") as file:
                    file.write(b"+%d" % worker)
                path.rename(mount / f"d/moved{number}")
                os.listdir(mount / "d")
                if number % 3 == 0:
                    (mount / f"d/moved{number}").unlink()

        with ThreadPoolExecutor(4) as pool:
            for job in [pool.submit(work, worker) for worker in range(4)]:
                job.result()
        expected = {f"moved{number}" for number in range(200) if number % 3}
        assert set(os.listdir(mount / "d")) == expected
        for number in range(1, 200, 3):
            assert (mount / f"d/moved{number}").read_bytes() == b"lower+%d" % (number % 4)
