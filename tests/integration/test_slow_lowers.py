"""A lower whose filesystem keeps everybody waiting: here a FUSE filesystem, whose daemon is stopped for a while."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.arena import Arena
from tests.support.far import far, stopped
from tests.support.layers import Dir, File, Name, Node, Symlink
from tests.support.mountinfo import mount_at
from tests.support.mounts import FuseunionMount
from tests.support.waiting import wait_until

DATA = os.urandom(8 << 20)
FAR = 6 << 20
"""Not read before, nor ahead, when the beginning of the file was."""


def waiting(daemon: int) -> int:
    """How many threads of a daemon wait for an answer of a FUSE filesystem (proc_pid_wchan(5))."""
    found = 0
    for thread in Path(f"/proc/{daemon}/task").iterdir():
        with suppress(FileNotFoundError):  # it has ended meanwhile
            found += (thread / "wchan").read_text() == "request_wait_answer"
    return found


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
    near, slow = arena.lower({"near": File(b"near")}), arena.directory("slow")
    with far(slow, arena.lower({"far": File(DATA)})) as server, arena.mount(near, slow) as mount:
        (mount / "new").touch()
        reading = Reading(mount / "far")
        with stopped(server):
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
    slow = arena.directory("slow")
    with far(slow, arena.lower({"far": File(DATA)})) as server:
        mount = arena.mount(slow)
        mount.start()
        reading = Reading(mount / "far")
        with stopped(server):
            reading.begin(mount.daemon)
            os.kill(mount.daemon, signal.SIGTERM)
            wait_until(lambda: mount_at(mount.merged) is None, "the end of the mount")
            assert mount.daemon in processes.with_token(arena.place.token)
        reading.close()
        assert reading.outcome == DATA[FAR : FAR + 10]
        wait_until(lambda: mount.daemon not in processes.with_token(arena.place.token), "the daemon's end")
        mount.check_log()


class Call:
    """A call in a thread of its own that a lower keeps waiting."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.outcome: object = None
        self._call = call
        self._thread = threading.Thread(target=self._make)
        self._thread.start()

    def _make(self) -> None:
        try:
            self.outcome = self._call()
        except OSError as error:
            self.outcome = error.errno

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> object:
        """What it returned, or its errno."""
        self._thread.join(30)
        assert self.ended, "it never ended"
        return self.outcome


FAR_TREE: dict[Name, Node] = {
    "far/file": File(b"far"),
    "far/link": Symlink("file"),
    "far/removed": File(b"x"),
    "far/old": File(b"old"),
    "far/changed": File(b"changed"),
    "far/attributed": File(b"a", xattrs={"user.of": b"far"}),
    "far/sub/below": File(b"below"),
}

ASKS: dict[str, tuple[Callable[[Path], object], object]] = {
    "lookup": (lambda far: (far / "file").stat().st_size, 3),
    "missing": (lambda far: (far / "none").stat(), errno.ENOENT),
    "list": (lambda far: sorted(os.listdir(far)), ["attributed", "changed", "file", "link", "old", "removed", "sub"]),
    "readlink": (lambda far: os.readlink(far / "link"), "file"),
    "read": (lambda far: (far / "file").read_bytes(), b"far"),
    "getxattr": (lambda far: os.getxattr(far / "attributed", "user.of"), b"far"),
    "write": (lambda far: (far / "changed").write_bytes(b"new"), 3),
    "chmod": (lambda far: (far / "changed").chmod(0o600), None),
    "create": (lambda far: (far / "new").write_bytes(b"new"), 3),
    "mkdir": (lambda far: (far / "made").mkdir(), None),
    "unlink": (lambda far: (far / "removed").unlink(), None),
    "rename": (lambda far: (far / "old").rename(far / "moved") and None, None),
    "link": (lambda far: os.link(far / "file", far / "linked"), None),
    "rmtree": (lambda far: shutil.rmtree(far / "sub"), None),
}


def use_what_is_near(mount: FuseunionMount, number: int = 0) -> None:
    """All kinds of requests that need nothing of a lower below that of the directory "near"."""
    near = mount / "near"
    assert (near / "file").read_bytes() == b"near"
    assert not (near / f"missing{number}").exists()
    (near / f"new{number}").write_bytes(b"new")
    (near / f"new{number}").rename(near / f"moved{number}")
    assert f"moved{number}" in os.listdir(near)
    (near / f"moved{number}").unlink()
    (near / "file").chmod(0o600 + number)


@contextmanager
def two_lowers(arena: Arena, tree: dict[Name, Node] = FAR_TREE) -> Iterator[tuple[int, FuseunionMount]]:
    """The daemon of a lower, and a mount that has it below another that always answers."""
    near, slow = arena.lower({"near/file": File(b"near"), "far": Dir()}), arena.directory("slow")
    with far(slow, arena.lower(tree)) as server, arena.mount(near, slow) as mount:
        (mount / "near" / "file").touch()
        yield server, mount


@pytest.mark.parametrize("kind", ASKS)
def test_what_waits_for_a_lower_holds_up_nobody(arena: Arena, kind: str) -> None:
    call, answer = ASKS[kind]
    with two_lowers(arena) as (server, mount):
        with stopped(server):
            asking = Call(lambda: call(mount / "far"))
            wait_until(lambda: waiting(mount.daemon) == 1, "a waiting thread")
            use_what_is_near(mount)
            assert not asking.ended
        assert asking.result() == answer


def test_more_than_there_are_threads_hold_up_nobody(arena: Arena) -> None:
    # The kernel may ask for one name of a directory at a time.
    with two_lowers(arena, {f"far/{number}": Dir() for number in range(40)}) as (server, mount):
        directories = [mount / "far" / str(number) for number in range(40)]
        assert all(directory.is_dir() for directory in directories)
        with stopped(server):
            asking = [Call((directory / "none").stat) for directory in directories]
            wait_until(lambda: waiting(mount.daemon) == 32, "all threads to wait")
            for number in range(5):
                use_what_is_near(mount, number)
            assert not any(call.ended for call in asking)
        assert [call.result() for call in asking] == [errno.ENOENT] * 40


@pytest.mark.actors("user", "userns")
def test_those_who_wait_take_no_descriptors(arena: Arena) -> None:
    """However many wait for a thread, of the few descriptors that a process may have others get theirs."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
    with two_lowers(arena, {f"far/{number}": Dir() for number in range(600)}) as (server, mount):
        directories = [mount / "far" / str(number) for number in range(600)]
        assert all(directory.is_dir() for directory in directories)
        with stopped(server):
            before = len(processes.descriptors(mount.daemon))
            asking = [Call((directory / "none").stat) for directory in directories]
            wait_until(lambda: waiting(mount.daemon) == 32, "all threads to wait")
            use_what_is_near(mount)
            assert len(processes.descriptors(mount.daemon)) <= before + 2 * 32
        assert [call.result() for call in asking] == [errno.ENOENT] * 600


def test_a_lower_that_was_added_holds_up_nobody(arena: Arena) -> None:
    near, slow = arena.lower({"near/file": File(b"near")}), arena.directory("slow")
    with far(slow, arena.lower(FAR_TREE)) as server, arena.mount(near) as mount:
        added = arena.place.fuseunion("add-lower", mount.merged, slow)
        assert added.returncode == 0, added.stderr
        (mount / "near" / "file").touch()
        (mount / "far").stat()
        with stopped(server):
            asking = Call((mount / "far" / "file").read_bytes)
            wait_until(lambda: waiting(mount.daemon) == 1, "a waiting thread")
            use_what_is_near(mount)
            assert not asking.ended
        assert asking.result() == b"far"


def test_files_of_a_lower_are_closed_without_it(arena: Arena) -> None:
    """The mount closes what nobody has used for a while, and the lower is told of each close(2)."""
    with two_lowers(arena, {"far/file": File(DATA)}) as (server, mount):
        for position in range(0, len(DATA), 2 << 20):
            fd = os.open(mount / "far" / "file", os.O_RDONLY)
            try:
                assert os.pread(fd, 10, position) == DATA[position : position + 10]
            finally:
                os.kill(server, signal.SIGSTOP)
                os.close(fd)
            try:
                wait_until(lambda: waiting(mount.daemon) == 1 or not mount.layer_descriptors(), "the file to be closed")
                use_what_is_near(mount)
                if waiting(mount.daemon):
                    return
            finally:
                os.kill(server, signal.SIGCONT)
        pytest.fail("each time it was closed already")


def test_a_file_that_was_exchanged_is_not_taken_for_the_one_that_was_found(arena: Arena) -> None:
    """A thread opens what its path leads to; the mount looks whether it is the file."""
    place = arena.directory("far-tree")
    (place / "file").write_bytes(b"old")
    with far(arena.directory("slow"), place) as server, arena.mount(arena.root / "slow") as mount:
        assert (mount / "file").stat().st_size == 3
        with stopped(server):
            (place / "other").write_bytes(b"another")
            (place / "other").rename(place / "file")
        wait_until(lambda: (arena.root / "slow" / "file").stat().st_size == 7, "the server to say so")
        asking = Call((mount / "file").read_bytes)
        assert asking.result() in (errno.ESTALE, b"another")


def test_a_signal_ends_a_mount_that_waits(arena: Arena) -> None:
    slow = arena.directory("slow")
    with far(slow, arena.lower(FAR_TREE)) as server:
        mount = arena.mount(slow)
        mount.start()
        with stopped(server):
            asking = Call((mount / "far" / "file").stat)
            wait_until(lambda: waiting(mount.daemon) == 1, "a waiting thread")
            os.kill(mount.daemon, signal.SIGTERM)
            wait_until(lambda: mount_at(mount.merged) is None, "the end of the mount")
            assert asking.result() in (errno.ENOTCONN, errno.ECONNABORTED)
        wait_until(lambda: mount.daemon not in processes.with_token(arena.place.token), "the daemon's end")
        mount.check_log()
