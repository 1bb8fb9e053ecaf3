"""What threads of the extension module do: reads that wait, and fsync(2) (wire/native/data/waiting.c)."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuseunion.engines.fuse.wire import layouts
from tests.support.far import far, stopped
from tests.support.interpreter import PROJECT
from tests.support.waiting import wait_until
from tests.support.wire_kernel import NODE, Kernel, kernel

__all__ = ["kernel"]

TEXT = Path("/proc/version").read_bytes()
"""Of a file that cannot be read without waiting for it (RWF_NOWAIT), as far as the kernel knows."""


@pytest.fixture
def descriptors(kernel: Kernel) -> Iterator[None]:
    """What the threads are given is closed."""
    kernel.attach()  # the first one makes the descriptor that says what is on disk
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    wait_until(lambda: kernel.device.waiting() == 0, "every request is answered")
    assert sorted(os.listdir("/proc/self/fd")) == before


def _body(offset: int, size: int) -> bytes:
    return struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0)


@pytest.mark.usefixtures("descriptors")
def test_what_a_handler_wants(kernel: Kernel, tmp_path: Path) -> None:
    """It gets the descriptor off its hands."""
    data = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(data)
    kernel.attach(layouts.READ)
    for offset, size in (
        (0, 10),
        (5, 1 << 17),
        (1 << 20, 150_000),
        (3 << 20, 10),
        (1 << 40, 1),
        ((3 << 20) - 1, 5),
        (0, 0),
    ):
        kernel.answer = (os.open(tmp_path / "file", os.O_RDONLY), offset, size)
        assert kernel.ask(layouts.READ, _body(0, 1)) == (0, data[offset : offset + size]), (offset, size)


@pytest.mark.usefixtures("descriptors")
def test_what_a_handler_wants_later(kernel: Kernel) -> None:
    kernel.attach(layouts.READ)
    unique = kernel.send(layouts.READ, _body(0, 1))
    kernel.answer = iter(())  # no answer yet
    kernel.serve()
    kernel.device.reply(layouts.READ, unique, 0, 0, (os.open("/proc/version", os.O_RDONLY), 2, 7))
    assert kernel.reply(unique) == (0, TEXT[2:9])


@pytest.mark.usefixtures("descriptors")
def test_a_shared_file(kernel: Kernel) -> None:
    """Many at once, of a file that is unshared and closed meanwhile."""
    kernel.attach(layouts.READ)
    kernel.answer = errno.EPERM
    with open("/proc/version", "rb") as file:
        kernel.device.share(NODE, file.fileno(), kernel.device.READS)
        uniques = [kernel.send(layouts.READ, _body(offset, 5)) for offset in range(60)]
        kernel.device.serve(len(uniques), 0, 0)
        kernel.device.unshare(NODE)
    answers = {kernel.reply_to_any() for _ in uniques}
    assert answers == {(unique, 0, TEXT[offset : offset + 5]) for offset, unique in enumerate(uniques)}
    assert not kernel.calls
    wait_until(lambda: sum(kernel.device.durations(layouts.READ)[1]) >= 60, "they are counted")


@pytest.mark.usefixtures("descriptors")
def test_errors(kernel: Kernel, tmp_path: Path) -> None:
    kernel.attach(layouts.READ)
    before = kernel.device.counts()[1].get(errno.EBADF, 0)
    kernel.answer = (os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT), 0, 5)
    assert kernel.ask(layouts.READ, _body(0, 5)) == (errno.EBADF, b"")
    wait_until(lambda: kernel.device.counts()[1].get(errno.EBADF, 0) == before + 1, "it is counted")
    for wanted in ((), ("x", 0, 1), (1 << 40, 0, 1), (-1, 0, 1)):
        kernel.answer = wanted
        error, data = kernel.ask(layouts.READ, _body(0, 5))
        assert error and not data, wanted


@pytest.mark.usefixtures("descriptors")
def test_the_end_waits_for_answers(kernel: Kernel) -> None:
    """Nothing is written to whoever gets the number of the descriptor after it was closed."""
    count, size = 40, 2000
    with socket.socket(fileno=os.dup(kernel.fd)) as theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * size)  # so most replies wait until others are taken
    kernel.attach(layouts.READ)
    os.set_blocking(kernel.fd, True)
    with tempfile.TemporaryFile() as file:
        file.write(bytes(size))
        file.flush()
        for _ in range(count):
            kernel.answer = (os.dup(file.fileno()), 0, size)
            kernel.send(layouts.READ, _body(0, size))
            kernel.serve()
    begun = threading.Event()
    taken: list[int] = []

    def take() -> None:
        begun.wait()
        taken.extend(len(kernel.reply_to_any()[2]) for _ in range(count))

    taker = threading.Thread(target=take)
    taker.start()
    begun.set()
    kernel.device.finish()
    assert kernel.device.waiting() == 0
    taker.join()
    assert taken == [size] * count


def _to_sync(*, data_only: bool) -> bytes:
    return struct.pack("=QII", 0, data_only, 0)


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("opcode", [layouts.FSYNC, layouts.FSYNCDIR])
def test_what_a_handler_wants_to_be_on_disk(kernel: Kernel, tmp_path: Path, opcode: int) -> None:
    """A pipe cannot be synced: so it is known what has been asked for."""
    kernel.attach(opcode)
    before = kernel.device.counts()[1].get(errno.EINVAL, 0)
    for data_only in (True, False):
        kernel.answer = (os.open(tmp_path, os.O_RDONLY), data_only)
        assert kernel.ask(opcode, _to_sync(data_only=data_only)) == (0, b"")
        reader, writer = os.pipe()
        os.close(writer)
        kernel.answer = (reader, data_only)
        assert kernel.ask(opcode, _to_sync(data_only=data_only)) == (errno.EINVAL, b"")
    assert kernel.calls == [(opcode, NODE, True)] * 2 + [(opcode, NODE, False)] * 2
    wait_until(lambda: kernel.device.counts()[1].get(errno.EINVAL, 0) == before + 2, "they are counted")
    unique = kernel.send(opcode, _to_sync(data_only=False))
    kernel.answer = iter(())  # no answer yet
    kernel.serve()
    kernel.device.reply(opcode, unique, 0, 0, (os.open(tmp_path, os.O_RDONLY), False))
    assert kernel.reply(unique) == (0, b"")
    for wanted in ((), ("x", False), (1 << 40, False), (-1, False), (0, 0, 0)):
        kernel.answer = wanted
        error, data = kernel.ask(opcode, _to_sync(data_only=False))
        assert error and not data, wanted


@pytest.mark.usefixtures("descriptors")
def test_a_shared_file_is_synced_without_python(kernel: Kernel, tmp_path: Path) -> None:
    """Only where that is all that is to be done; a short request is none."""
    kernel.attach(layouts.FSYNC)
    kernel.answer = errno.EPERM
    with open(tmp_path / "file", "wb") as file:
        for uses, answer in ((kernel.device.WRITES, errno.EPERM), (kernel.device.SYNCS, 0)):
            kernel.device.share(NODE, file.fileno(), uses)
            assert kernel.ask(layouts.FSYNC, _to_sync(data_only=False)) == (answer, b"")
        assert len(kernel.calls) == 1
        assert kernel.ask(layouts.FSYNC, b"short")[0] == errno.EIO
        kernel.device.unshare(NODE)
    wait_until(lambda: kernel.device.counts()[2].get(layouts.FSYNC, 0) >= 1, "it is counted")


@pytest.mark.usefixtures("descriptors")
def test_reads_do_not_wait_behind_what_is_written_out(kernel: Kernel, tmp_path: Path) -> None:
    """More fsync(2) than there are threads, all of a filesystem that does not answer."""
    kernel.attach(layouts.FSYNC, layouts.READ)
    directory, place = tmp_path / "directory", tmp_path / "place"
    directory.mkdir()
    place.mkdir()
    (directory / "file").touch()
    with far(place, directory) as server, open(place / "file", "rb") as file:
        with stopped(server):
            for _ in range(20):
                kernel.answer = (os.dup(file.fileno()), False)
                kernel.send(layouts.FSYNC, _to_sync(data_only=False))
                kernel.serve()
            kernel.answer = (os.open("/proc/version", os.O_RDONLY), 0, 5)
            assert kernel.ask(layouts.READ, _body(0, 5)) == (0, TEXT[:5])
            wait_until(lambda: kernel.device.waiting() == 20, "the read is counted as answered")
        assert {kernel.reply_to_any()[1:] for _ in range(20)} == {(0, b"")}
        wait_until(lambda: kernel.device.waiting() == 0, "every request is answered")


# -- for the loop ----------------------------------------------------------------------------------------------------


def _told(kernel: Kernel) -> bool:
    poll = select.poll()
    poll.register(kernel.device.told(), select.POLLIN)
    return bool(poll.poll(5000))


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("by", ["serve", "tell"])
def test_files_that_the_loop_waits_for(kernel: Kernel, tmp_path: Path, by: str) -> None:
    """It is told with the first error, once for all of them, and keeps their descriptors."""
    kernel.attach(layouts.READ)
    told: list[int] = []
    reader, writer = os.pipe()
    with open(tmp_path / "file", "wb") as file:
        for fds in ((file.fileno(),), (file.fileno(),) * 20, (), (file.fileno(), reader, file.fileno())):
            kernel.device.sync(fds, told.append)
            assert _told(kernel)
            if by == "tell":
                kernel.device.tell()
            else:
                assert kernel.device.serve(5, 0, 0) == kernel.device.TURN, "others ought to get their turn"
        os.fstat(file.fileno())
    os.close(reader)
    os.close(writer)
    assert told == [0, 0, 0, errno.EINVAL]
    kernel.device.tell()
    assert len(told) == 4


@pytest.mark.usefixtures("descriptors")
def test_the_loop_is_told_while_it_sleeps(kernel: Kernel, tmp_path: Path) -> None:
    """And after the request that it is dealing with."""
    kernel.attach(layouts.READ)
    kernel.answer = errno.EPERM
    told: list[int] = []
    with open(tmp_path / "file", "wb") as file:
        kernel.device.sync((file.fileno(),), told.append)
        assert kernel.device.serve(5, 0, 10**10) == kernel.device.TURN
        assert told == [0]
        kernel.device.sync((file.fileno(),), told.append)
        assert _told(kernel)
        unique = kernel.send(layouts.READ, _body(0, 5))
        kernel.send(layouts.READ, _body(0, 5))
        assert kernel.device.serve(5, 0, 0) == kernel.device.TURN
        assert told == [0, 0]
        assert kernel.reply(unique) == (errno.EPERM, b"")
        assert len(kernel.calls) == 1
        kernel.serve()


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("by", ["serve", "tell"])
def test_nobody_waits_in_vain(kernel: Kernel, by: str) -> None:
    """Whatever the thread and the loop do in between: the thread is in the middle of it when it wakes the loop."""
    kernel.attach(layouts.READ)
    told: list[int] = []
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        for number in range(3000):
            kernel.device.sync((file.fileno(),), told.append)
            while len(told) <= number:
                assert _told(kernel)
                if by == "tell":
                    kernel.device.tell()
                else:
                    kernel.device.serve(1, 0, 10**9)


@pytest.mark.usefixtures("descriptors")
def test_who_cannot_be_told(kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in what is called is logged by the interpreter, and the loop goes on."""
    kernel.attach(layouts.READ)
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: said.append(found.exc_type))
    with open(tmp_path / "file", "wb") as file:
        kernel.device.sync((file.fileno(),), lambda: None)
        assert _told(kernel)
        assert kernel.device.serve(5, 0, 0) == kernel.device.TURN
    assert said == [TypeError]
    for wrong in ((5, print), ((None,), print), ((1 << 40,),), ()):
        with pytest.raises((TypeError, OverflowError)):
            kernel.device.sync(*wrong)
    wait_until(lambda: kernel.device.waiting() == 0, "the thread has left, and nobody is counted who was refused")


_WITHOUT_THREADS = """
import os, resource, struct
from fuseunion.engines.fuse.wire import layouts
from tests.support.wire_kernel import Kernel
kernel = Kernel()
kernel.attach(layouts.READ)
file = os.open("/proc/version", os.O_RDONLY)
os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
kernel.answer = (file, 0, 5)
print(kernel.ask(layouts.READ, struct.pack("=QQIIQII", 0, 0, 5, 0, 0, 0, 0)), len(os.listdir("/proc/self/task")))
"""


def test_where_there_can_be_no_thread() -> None:
    """Everybody waits for the disk, and nobody gets an error."""
    command = [sys.executable, "-c", _WITHOUT_THREADS]
    said = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (said.stdout, said.stderr) == (f"{(0, TEXT[:5])} 1\n", "")
