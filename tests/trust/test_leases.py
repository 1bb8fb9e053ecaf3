"""Somebody has a lease on a file of a layer (fcntl(2), F_SETLEASE): who opens it waits, and nobody else does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.layers import File, build
from tests.support.product import WITH_EXTENSION
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.actors("root", "user"), pytest.mark.limit(40)]


@contextmanager
def leased(path: Path, kind: int) -> Iterator[Callable[[], None]]:
    """Hold a lease until what is yielded is called; the signal that asks for it back goes to nobody."""
    fd = os.open(path, os.O_RDONLY if kind == fcntl.F_RDLCK else os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
    fcntl.fcntl(fd, fcntl.F_SETOWN, 0)
    try:
        yield lambda: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK) and None
    finally:
        os.close(fd)


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"+")


def _is_asked_back(path: Path) -> bool:
    """proc_locks(5)."""
    number = f":{path.stat().st_ino} "
    return any(
        " BREAKING " in line and number in line for line in Path("/proc/locks").read_text().splitlines(keepends=True)
    )


def _through(call: Callable[[int], object], path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        call(fd)
    finally:
        os.close(fd)


ACTS: dict[str, tuple[str, int, Callable[[Path], object], bytes]] = {
    "read": ("upper", fcntl.F_WRLCK, Path.read_bytes, b"upper"),
    "write": ("upper", fcntl.F_RDLCK, _append, b"upper+"),
    "truncate": ("upper", fcntl.F_RDLCK, lambda path: os.truncate(path, 1), b"u"),
    "fsync": ("upper", fcntl.F_WRLCK, lambda path: _through(os.fsync, path), b"upper"),
    "copy-up": ("lower", fcntl.F_WRLCK, lambda path: os.chmod(path, 0o600), b"lower"),
}


@pytest.mark.parametrize("act", ACTS)
def test_the_mount_does_not_wait(arena: Arena, act: str) -> None:
    """The mount answered nobody for 45 seconds."""
    where, kind, call, expected = ACTS[act]
    lower = arena.lower({"lower": File(b"lower"), "other": File(b"other")})
    build(arena.upper, {"upper": File(b"upper")})
    with arena.mount(lower) as mount:
        (mount / where).stat()
        with leased(arena.upper / "upper" if where == "upper" else lower / "lower", kind) as give_back:
            ended = threading.Event()

            def work() -> None:
                call(mount / where)
                ended.set()

            worker = threading.Thread(target=work)
            worker.start()
            assert (mount / "other").read_bytes() == b"other"
            assert not ended.wait(0.3)
            assert (mount / "other").read_bytes() == b"other"
            give_back()
            worker.join()
        assert ended.is_set()
        assert (mount / where).read_bytes() == expected


@pytest.mark.skipif(not WITH_EXTENSION, reason="pyfuse3 has no handler for it: the kernel does it by itself")
def test_seeking_a_hole_waits_too(arena: Arena) -> None:
    """It was answered EAGAIN."""
    lower = arena.lower({"lower": File(b"lower")})
    with arena.mount(lower) as mount, leased(lower / "lower", fcntl.F_WRLCK) as give_back:
        fd = os.open(mount / "lower", os.O_RDONLY)
        found: list[int] = []
        worker = threading.Thread(target=lambda: found.append(os.lseek(fd, 0, os.SEEK_HOLE)))
        worker.start()
        wait_until(lambda: _is_asked_back(lower / "lower"), "the lease to be asked back")
        assert mount.merged.is_dir()
        give_back()
        worker.join()
        os.close(fd)
        assert found == [5]


def test_who_does_not_want_to_wait(arena: Arena) -> None:
    """open(2), O_NONBLOCK: EWOULDBLOCK. With the extension module the daemon does not hear of it, and it succeeds."""
    lower = arena.lower({})
    build(arena.upper, {"upper": File(b"upper")})
    refused = contextlib.nullcontext() if WITH_EXTENSION else pytest.raises(BlockingIOError)
    with arena.mount(lower) as mount, leased(arena.upper / "upper", fcntl.F_RDLCK), refused:
        os.close(os.open(mount / "upper", os.O_RDWR | os.O_NONBLOCK))
