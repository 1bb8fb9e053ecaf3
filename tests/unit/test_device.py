"""The extension module by itself: requests in, answers out, over a pair of sockets in the place of /dev/fuse."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import random
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fuseunion.engines.fuse.wire import layouts
from fuseunion.engines.fuse.wire.native import device as found
from tests.support import processes
from tests.support.interpreter import PROJECT
from tests.support.wire_kernel import (
    ABSENT,
    GID,
    HEADER,
    NODE,
    OUT,
    PID,
    UID,
    Kernel,
    attributes,
    kernel,
)

__all__ = ["feed", "kernel"]


def test_it_was_built() -> None:
    """The set-up of the tests has a compiler."""
    assert found.device is not None


CALLER = (UID, GID, PID)


def test_one_that_was_built_from_other_sources() -> None:
    """A checkout that was updated, and not installed again: mounts go on without it."""
    name = "fuseunion.engines.fuse.wire.native._device"
    code = f"""
import sys, types
sys.modules[{name!r}] = types.ModuleType({name!r})
from fuseunion.engines.fuse.wire.native import device
print(device.device)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


REQUESTS: dict[str, tuple[int, bytes, tuple[Any, ...]]] = {
    "lookup": (layouts.LOOKUP, b"name\0", (NODE, b"name")),
    "getattr": (layouts.GETATTR, bytes(16), (NODE,)),
    "setattr": (
        layouts.SETATTR,
        struct.pack("=IIQQQQQQIIIIIIII", 0x7F, 0, 0, 5, 0, 7, 8, 0, 1, 2, 0, 0o600, 0, 10, 11, 0),
        (NODE, *CALLER, 0x7F, 0o600, 10, 11, 5, 7_000_000_001, 8_000_000_002),
    ),
    "times before 1970": (
        layouts.SETATTR,
        struct.pack("=IIQQQqqQIIIIIIII", 0x30, 0, 0, 0, 0, -1, -(1 << 62), 0, 5, 0, 0, 0, 0, 0, 0, 0),
        (NODE, *CALLER, 0x30, 0, 0, 0, 0, -999_999_995, -(1 << 62) * 1_000_000_000),
    ),
    "readlink": (layouts.READLINK, b"", (NODE,)),
    "symlink": (layouts.SYMLINK, b"name\0target\0", (NODE, *CALLER, b"name", b"target")),
    "mknod": (
        layouts.MKNOD,
        struct.pack("=IIII", 0o100644, 5, 0o22, 0) + b"n\0",
        (NODE, *CALLER, 0o22, 0o100644, 5, b"n"),
    ),
    "mkdir": (layouts.MKDIR, struct.pack("=II", 0o755, 0o22) + b"n\0", (NODE, *CALLER, 0o22, 0o755, b"n")),
    "unlink": (layouts.UNLINK, b"n\0", (NODE, b"n")),
    "rename": (layouts.RENAME, struct.pack("=Q", 5) + b"old\0new\0", (NODE, b"old", 5, b"new", 0)),
    "rename2": (layouts.RENAME2, struct.pack("=QII", 5, 2, 0) + b"old\0new\0", (NODE, b"old", 5, b"new", 2)),
    "link": (layouts.LINK, struct.pack("=Q", 9) + b"new\0", (NODE, 9, b"new")),
    "read": (layouts.READ, struct.pack("=QQIIQII", 0, 10, 20, 0, 0, 0, 0), (NODE, 10, 20)),
    "readdirplus": (layouts.READDIRPLUS, struct.pack("=QQIIQII", 0, 10, 20, 0, 0, 0, 0), (NODE, 10, 20)),
    "write": (
        layouts.WRITE,
        struct.pack("=QQIIQII", 0, 10, 4, 4, 0, 0, 0) + b"data",
        (NODE, *CALLER, 4, 10, b"data"),
    ),
    "fsync": (layouts.FSYNC, struct.pack("=QII", 0, 1, 0), (NODE, True)),
    "setxattr": (layouts.SETXATTR, struct.pack("=II", 3, 1) + b"user.x\0val", (NODE, *CALLER, b"user.x", b"val", 1)),
    "getxattr": (layouts.GETXATTR, struct.pack("=II", 100, 0) + b"user.x\0", (NODE, b"user.x")),
    "listxattr": (layouts.LISTXATTR, struct.pack("=II", 100, 0), (NODE, UID)),
    "removexattr": (layouts.REMOVEXATTR, b"user.x\0", (NODE, b"user.x")),
    "access": (layouts.ACCESS, struct.pack("=II", 4, 0), (NODE, 4)),
    "ioctl": (layouts.IOCTL, struct.pack("=QIIQII", 0, 1, 7, 2, 3, 1 << 20) + b"abc", (NODE, 7, b"abc", 4096)),
    "fallocate": (layouts.FALLOCATE, struct.pack("=QQQII", 0, 1, 2, 3, 0), (NODE, *CALLER, 1, 2, 3)),
    "lseek": (layouts.LSEEK, struct.pack("=QQII", 0, 5, 3, 0), (NODE, 5, 3)),
    "copy_file_range": (
        layouts.COPY_FILE_RANGE,
        struct.pack("=QQQQQQQ", 0, 1, 9, 0, 2, 3, 0),
        (NODE, *CALLER, 1, 9, 2, 3),
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_what_a_handler_gets(kernel: Kernel, name: str) -> None:
    opcode, body, expected = REQUESTS[name]
    kernel.attach(opcode)
    kernel.answer = 0
    assert kernel.ask(opcode, body) == (0, b"")
    assert kernel.calls == [(opcode, *expected)]


def test_what_only_a_terminal_can_answer(kernel: Kernel) -> None:
    """isatty(3), which Python asks of each file that it opens."""
    kernel.attach(layouts.IOCTL)
    kernel.answer = b"answer"
    for command, expected in ((termios.TCGETS, (errno.ENOTTY, b"")), (0x6601, (0, b"answer"))):
        assert kernel.ask(layouts.IOCTL, struct.pack("=QIIQII", 0, 0, command, 0, 0, 60)) == expected
    assert [call[2] for call in kernel.calls] == [0x6601]
    assert kernel.ask(layouts.IOCTL, struct.pack("=QII", 0, 0, termios.TCGETS)) == (errno.EIO, b"")


@pytest.mark.parametrize("name", [name for name, (_, body, _args) in REQUESTS.items() if body and name != "getattr"])
def test_a_request_that_is_too_short(kernel: Kernel, name: str) -> None:
    """Whatever its end is: an error for its caller, and no handler is asked."""
    opcode, body, _ = REQUESTS[name]
    kernel.attach(opcode)
    for length in {0, 1, len(body) // 2, len(body) - 1}:
        assert kernel.ask(opcode, body[:length]) == (errno.EIO, b"")
    assert not kernel.calls
    assert all(isinstance(error, ValueError) for error in kernel.errors)


def test_answers(kernel: Kernel) -> None:
    kernel.attach(layouts.READLINK)
    for answer, expected in [
        (b"target", (0, b"target")),
        (errno.ENOENT, (errno.ENOENT, b"")),
        (OSError(errno.EACCES, "no"), (errno.EACCES, b"")),
        (ValueError("a bug"), (errno.EIO, b"")),
    ]:
        kernel.answer = answer
        assert kernel.ask(layouts.READLINK) == expected
    assert [type(error) for error in kernel.errors] == [PermissionError, ValueError]


def test_an_answer_that_comes_later(kernel: Kernel) -> None:
    kernel.attach(layouts.GETXATTR)
    kernel.answer = thing = object()
    unique = kernel.send(layouts.GETXATTR, struct.pack("=II", 3, 0) + b"user.x\0")
    assert kernel.serve() == kernel.device.TURN
    ((*told, since, given),) = kernel.later
    assert (*told, given) == (layouts.GETXATTR, unique, 3, thing)
    kernel.device.reply(layouts.GETXATTR, unique, 3, since, b"four")
    assert kernel.reply(unique) == (errno.ERANGE, b"")
    with pytest.raises(TypeError):
        kernel.device.reply(layouts.GETXATTR, unique, 3, since, None)


@pytest.mark.parametrize(
    ("room", "expected"), [(0, (0, struct.pack("=II", 5, 0))), (4, (errno.ERANGE, b"")), (5, (0, b"value"))]
)
def test_the_size_of_an_attribute(kernel: Kernel, room: int, expected: tuple[int, bytes]) -> None:
    kernel.attach(layouts.GETXATTR)
    kernel.answer = b"value"
    assert kernel.ask(layouts.GETXATTR, struct.pack("=II", room, 0) + b"user.x\0") == expected


def test_attributes_are_the_end_of_an_entry(kernel: Kernel) -> None:
    kernel.attach(layouts.GETATTR)
    kernel.answer = entry = bytes(range(layouts.ENTRY.size))
    error, body = kernel.ask(layouts.GETATTR, bytes(16))
    assert (error, len(body)) == (0, 104)
    assert body[:8] == entry[24:32]  # attr_valid
    assert body[16:] == entry[40:]
    kernel.answer = b"short"
    assert kernel.ask(layouts.GETATTR, bytes(16)) == (errno.EIO, b"")


def test_what_has_no_handler(kernel: Kernel) -> None:
    kernel.attach(layouts.LOOKUP, refusals={layouts.OPEN: errno.ENOSYS, layouts.FLUSH: errno.EPERM})
    for opcode, expected in [
        (layouts.OPEN, errno.ENOSYS),
        (layouts.FLUSH, errno.EPERM),
        (52, errno.ENOSYS),
        (4096, errno.ENOSYS),
    ]:
        assert kernel.ask(opcode, bytes(8)) == (expected, b"")
    interrupt = kernel.send(36, bytes(8))
    kernel.serve()
    assert kernel.reply(interrupt | 1) == (errno.ENOSYS, b"")


@pytest.mark.parametrize("opcode", [26, 38])
def test_what_is_left_for_libfuse(kernel: Kernel, opcode: int) -> None:
    """FUSE_INIT and FUSE_DESTROY."""
    kernel.attach(layouts.LOOKUP)
    kernel.send(opcode, bytes(64))
    assert kernel.serve() == kernel.device.PASSED


def test_forgetting(kernel: Kernel) -> None:
    kernel.attach()
    kernel.send(layouts.FORGET, struct.pack("=Q", 3))
    kernel.serve()
    kernel.send(42, struct.pack("=IIQQQQ", 2, 0, 5, 1, 6, 2))
    kernel.serve()
    kernel.send(42, struct.pack("=IIQQ", 1000, 0, 7, 1))  # says more than it holds
    kernel.serve()
    assert kernel.calls == [(layouts.FORGET, *one) for one in [(NODE, 3), (5, 1), (6, 2), (7, 1)]]


def test_memory_between_other_is_given_back(kernel: Kernel) -> None:
    """After many were forgotten; what lies at the end of the heap keeps all before it otherwise."""
    kernel.attach()
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(1 << 16) for _ in range(1000)]
    for block in blocks:
        ctypes.memset(block, 1, 1 << 16)
    for block in blocks[:-1]:
        libc.free(block)
    before = processes.resident_kib(os.getpid())
    try:
        for number in range(10):
            forgotten = b"".join(struct.pack("=QQ", 100 + each, 1) for each in range(1000))
            assert processes.resident_kib(os.getpid()) > before - 30_000, f"not after {number} thousand"
            kernel.send(42, struct.pack("=II", 1000, 0) + forgotten)
            kernel.serve()
        assert processes.resident_kib(os.getpid()) < before - 50_000
    finally:
        libc.free(blocks[-1])


def test_the_loop(kernel: Kernel) -> None:
    kernel.attach(layouts.LOOKUP)
    kernel.answer = 0
    assert kernel.device.serve(10, 1000, 0) == kernel.device.IDLE
    for _ in range(3):
        kernel.send(layouts.LOOKUP, b"x\0")
    assert kernel.device.serve(2, 0, 0) == kernel.device.TURN
    assert kernel.device.serve(2, 0, 0) == kernel.device.IDLE
    assert len(kernel.calls) == 3


# -- what is repeated --------------------------------------------------------------------------------------------------

WAYS = "READS", "WRITES"


@pytest.fixture
def shared(kernel: Kernel, tmp_path: Path) -> Iterator[int]:
    kernel.attach(layouts.READ, layouts.WRITE, layouts.GETATTR)
    kernel.answer = errno.EPERM
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"0123456789")
    yield fd
    kernel.device.unshare(NODE)
    os.close(fd)


def _read(kernel: Kernel, offset: int, size: int) -> tuple[int, bytes]:
    return kernel.ask(layouts.READ, struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0))


def _write(kernel: Kernel, offset: int, data: bytes) -> tuple[int, bytes]:
    return kernel.ask(layouts.WRITE, struct.pack("=QQIIQII", 0, offset, len(data), 0, 0, 0, 0) + data)


def test_reads_are_repeated(kernel: Kernel, shared: int) -> None:
    kernel.device.share(NODE, shared, kernel.device.READS)
    assert [_read(kernel, 2, 3), _read(kernel, 8, 10), _read(kernel, 20, 5)] == [(0, b"234"), (0, b"89"), (0, b"")]
    assert _write(kernel, 0, b"x") == (errno.EPERM, b"")
    kernel.device.unshare(NODE)
    assert _read(kernel, 2, 3) == (errno.EPERM, b"")
    assert [call[0] for call in kernel.calls] == [layouts.WRITE, layouts.READ]


def test_long_reads_of_a_file_in_memory(kernel: Kernel) -> None:
    """They go through a pipe, of which nothing is left in the next answer."""
    data = os.urandom(50_000)
    kernel.attach(layouts.READ)
    with open(os.memfd_create("file"), "r+b") as file:
        file.write(data)
        file.flush()
        kernel.device.share(NODE, file.fileno(), kernel.device.READS | kernel.device.NEVER_WAITS)
        for offset, size in (
            (0, 40_000),
            (0, 32 << 10),
            (10_001, 40_000),
            (4096, 1 << 20),
            (1, 100),
            (17_232, 1 << 17),
        ):
            assert _read(kernel, offset, size) == (0, data[offset : offset + size]), (offset, size)
        assert _read(kernel, 50_000, 1 << 17) == _read(kernel, 1 << 40, 1 << 17) == (0, b"")
        file.truncate(60_000)
        assert _read(kernel, 40_000, 1 << 17) == (0, data[40_000:] + bytes(10_000)), "a hole"
        kernel.device.unshare(NODE)
    assert not kernel.calls


def test_a_long_read_that_fails(kernel: Kernel, tmp_path: Path) -> None:
    """Python is asked, and what was begun is in no other answer."""
    data = os.urandom(40_000)
    (tmp_path / "file").write_bytes(data)
    kernel.attach(layouts.READ)
    kernel.answer = errno.EPERM
    for mode, answer in (("ab", (errno.EPERM, b"")), ("rb", (0, data)), ("ab", (errno.EPERM, b"")), ("rb", (0, data))):
        with open(tmp_path / "file", mode) as file:
            kernel.device.share(NODE, file.fileno(), kernel.device.READS | kernel.device.NEVER_WAITS)
            assert _read(kernel, 0, 1 << 17) == answer
            kernel.device.unshare(NODE)


def test_writes_are_told_before_anything_else(kernel: Kernel, shared: int) -> None:
    kernel.device.share(NODE, shared, kernel.device.READS | kernel.device.WRITES)
    written = struct.pack("=II", 3, 0)
    unique = [kernel.send(layouts.WRITE, struct.pack("=QQIIQII", 0, at, 3, 0, 0, 0, 0) + b"abc") for at in (0, 3)]
    unique.append(kernel.send(layouts.GETATTR, bytes(16)))
    kernel.answer = 0

    def handler(*args: object) -> int:
        assert kernel.changed == [NODE]
        return 0

    kernel.attach_handlers({layouts.GETATTR: handler}, {})
    assert kernel.device.serve(3, 0, 0) == kernel.device.TURN
    assert [kernel.reply(number) for number in unique] == [(0, written), (0, written), (0, b"")]
    assert kernel.changed == [NODE]
    assert os.pread(shared, 20, 0) == b"abcabc6789"
    assert _write(kernel, 0, b"xyz") == (0, written)
    assert kernel.changed == [NODE, NODE], "told at the end of a turn as well"


def test_a_write_that_fails(kernel: Kernel, shared: int, tmp_path: Path) -> None:
    """The error of the descriptor, here one that is only open for reading; and what there is space for."""
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        kernel.device.share(NODE, fd, kernel.device.WRITES)
        assert _write(kernel, 0, b"x") == (errno.EBADF, b"")
    finally:
        os.close(fd)


def test_numbers_that_share_a_place(kernel: Kernel, shared: int) -> None:
    """Whoever loses the place is asked by way of Python; nobody gets another's file."""
    for number in range(1, 5000):
        kernel.device.share(number, shared, kernel.device.READS)
    answers = {kernel.ask(layouts.READ, struct.pack("=QQIIQII", 0, 0, 1, 0, 0, 0, 0), n)[0] for n in range(1, 5000)}
    assert answers == {0, errno.EPERM}
    asked = {call[1] for call in kernel.calls}
    assert len(asked) > 3900
    for number in range(1, 5000):
        kernel.device.unshare(number)
    kernel.calls.clear()
    assert _read(kernel, 0, 1) == (errno.EPERM, b"")


SETATTR = struct.Struct("=IIQQQQQQIIIIIIII")
GETXATTR = struct.pack("=II", 100, 0)


def _set(kernel: Kernel, valid: int, mode: int = 0, ids: tuple[int, int] = (0, 0)) -> tuple[int, bytes]:
    body = SETATTR.pack(valid, 0, 0, 3, 0, 7, 8, 0, 1, 2, 0, mode, 0, *ids, 0)
    return kernel.ask(layouts.SETATTR, body)


@pytest.fixture
def owned(kernel: Kernel, shared: int) -> int:
    """A descriptor that is shared for attributes too."""
    device = kernel.device
    kernel.attach(*(getattr(layouts, name) for name in ("GETATTR", "SETATTR", "GETXATTR", "READ")))
    device.share(NODE, shared, device.ATTRIBUTES | device.NO_CAPABILITY | device.NEVER_WAITS)
    return shared


def test_attributes_are_repeated(kernel: Kernel, owned: int) -> None:
    assert kernel.ask(layouts.GETATTR, bytes(16)) == (0, attributes(os.fstat(owned)))
    assert _set(kernel, layouts.FATTR_MODE, 0o100640) == (0, attributes(os.fstat(owned)))
    assert os.fstat(owned).st_mode == 0o100640
    assert _set(kernel, layouts.FATTR_MTIME) == (0, attributes(os.fstat(owned)))
    assert os.fstat(owned).st_mtime_ns == 8_000_000_002
    before = os.fstat(owned).st_mtime_ns
    assert _set(kernel, layouts.FATTR_ATIME | 1 << 7) == (0, attributes(os.fstat(owned)))
    assert (os.fstat(owned).st_atime_ns, os.fstat(owned).st_mtime_ns) == (7_000_000_001, before)
    owner = layouts.FATTR_UID | layouts.FATTR_GID | layouts.FATTR_KILL_SUIDGID
    ids = os.geteuid(), os.getegid()
    assert _set(kernel, owner, ids=ids) == (0, attributes(os.fstat(owned)))
    assert not kernel.calls
    assert kernel.changed == [NODE] * 4, "told at the end of each turn"


@pytest.mark.parametrize(
    ("valid", "mode"),
    [
        (layouts.FATTR_MODE, 0o104755),
        (layouts.FATTR_MODE, 0o102755),
        (layouts.FATTR_SIZE, 0),
        (0, 0),
        (layouts.FATTR_MODE | layouts.FATTR_UID, 0o100600),
        (layouts.FATTR_MTIME | layouts.FATTR_SIZE, 0),
    ],
)
def test_changes_that_need_a_decision(kernel: Kernel, owned: int, valid: int, mode: int) -> None:
    before = os.fstat(owned)
    assert _set(kernel, valid, mode) == (errno.EPERM, b"")
    assert os.fstat(owned) == before
    assert [call[0] for call in kernel.calls] == [layouts.SETATTR]


def test_a_change_that_fails_is_begun_again(kernel: Kernel, owned: int, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_PATH)
    kernel.device.share(NODE, fd, kernel.device.ATTRIBUTES)
    assert _set(kernel, layouts.FATTR_MODE, 0o100600) == (errno.EPERM, b"")
    os.close(fd)
    assert kernel.ask(layouts.GETATTR, bytes(16)) == (errno.EPERM, b"")


def test_capabilities_are_repeated(kernel: Kernel, owned: int) -> None:
    assert kernel.ask(layouts.GETXATTR, GETXATTR + b"security.capability\0") == (errno.ENODATA, b"")
    assert not kernel.calls
    for name in (b"security.capabilit\0", b"security.capability2\0", b"user.x\0", b"security.capability"):
        assert kernel.ask(layouts.GETXATTR, GETXATTR + name)[0] in (errno.EPERM, errno.EIO)
    kernel.device.share(NODE, owned, kernel.device.ATTRIBUTES)
    assert kernel.ask(layouts.GETXATTR, GETXATTR + b"security.capability\0") == (errno.EPERM, b"")
    kernel.device.share(NODE, owned, kernel.device.READS)
    assert kernel.ask(layouts.GETATTR, bytes(16)) == (errno.EPERM, b"")
    assert _set(kernel, layouts.FATTR_MODE, 0o100600) == (errno.EPERM, b"")


@pytest.fixture
def attributed(kernel: Kernel, shared: int) -> int:
    """A descriptor that is shared for extended attributes too."""
    device = kernel.device
    kernel.attach(layouts.GETXATTR, layouts.LISTXATTR, layouts.SETXATTR)
    kernel.answer = errno.EPERM
    device.share(NODE, shared, device.ATTRIBUTES | device.XATTRS)
    return shared


ACL = b"system.posix_acl_access"
NAMED_USER = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in ((1, 6, 0xFFFFFFFF), (2, 4, 1234), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))
)


def _set_acl(kernel: Kernel, value: bytes, flags: int = 0, name: bytes = ACL) -> tuple[int, bytes]:
    return kernel.ask(layouts.SETXATTR, struct.pack("=II", len(value), flags) + name + b"\0" + value)


def test_attributes_that_are_not_there(kernel: Kernel, attributed: int) -> None:
    assert kernel.ask(layouts.LISTXATTR, struct.pack("=II", 0, 0)) == (0, bytes(8))
    assert kernel.ask(layouts.LISTXATTR, struct.pack("=II", 100, 0)) == (0, b"")
    for name in (ACL, b"security.capability"):
        assert kernel.ask(layouts.GETXATTR, GETXATTR + name + b"\0") == (errno.ENODATA, b"")
    assert not kernel.calls
    for name in (b"user.x", b"user.fuseunion.layer", b"trusted.x", ACL + b"2"):
        assert kernel.ask(layouts.GETXATTR, GETXATTR + name + b"\0") == (errno.EPERM, b"")
    assert kernel.ask(layouts.LISTXATTR, bytes(4)) == (errno.EIO, b"")


def test_an_acl_is_set(kernel: Kernel, attributed: int) -> None:
    assert _set_acl(kernel, NAMED_USER) == (0, b"")
    assert os.getxattr(attributed, ACL) == NAMED_USER
    assert not kernel.calls
    assert kernel.changed == [NODE]
    assert kernel.ask(layouts.GETXATTR, GETXATTR + ACL + b"\0") == (errno.EPERM, b""), "it is there now"
    assert kernel.ask(layouts.LISTXATTR, struct.pack("=II", 100, 0)) == (errno.EPERM, b"")


def test_attributes_that_need_a_decision(kernel: Kernel, attributed: int) -> None:
    for value, flags, name in ((NAMED_USER, 1, ACL), (b"nonsense", 0, ACL), (b"x", 0, b"user.x"), (b"", 0, ACL + b"x")):
        assert _set_acl(kernel, value, flags, name) == (errno.EPERM, b""), name
    assert os.listxattr(attributed) == []
    kernel.device.share(NODE, attributed, kernel.device.ATTRIBUTES)
    assert _set_acl(kernel, NAMED_USER) == (errno.EPERM, b"")
    assert kernel.ask(layouts.LISTXATTR, struct.pack("=II", 100, 0)) == (errno.EPERM, b"")
    kernel.device.share(NODE, attributed, kernel.device.READS | kernel.device.XATTRS)
    assert _set_acl(kernel, NAMED_USER) == (errno.EPERM, b"")


def test_short_requests(kernel: Kernel, owned: int) -> None:
    for opcode in (layouts.SETATTR, layouts.GETXATTR):
        assert kernel.ask(opcode, bytes(4)) == (errno.EIO, b"")


def test_comparing(kernel: Kernel, shared: int, tmp_path: Path) -> None:
    """For tests: Python is asked too, and a difference is told as the bug that it is."""
    directory = os.open(tmp_path, os.O_PATH)
    kernel.device.share_directory(NODE, (directory,), kernel.device.NAMES)
    os.close(directory)
    kernel.attach(layouts.LOOKUP, layouts.READ, compares=True)
    kernel.device.share(NODE, shared, kernel.device.READS)
    kernel.answer = ABSENT
    assert kernel.ask(layouts.LOOKUP, b"none\0") == (0, ABSENT)
    kernel.answer = b"234"
    assert _read(kernel, 2, 3) == (0, b"234")
    assert not kernel.errors
    assert _read(kernel, 3, 3) == (0, b"234")
    kernel.answer = errno.EIO
    assert kernel.ask(layouts.LOOKUP, b"none\0") == (errno.EIO, b"")
    kernel.errors.pop()
    kernel.answer = OSError(errno.EIO, "at last")
    assert kernel.ask(layouts.LOOKUP, b"none\0") == (errno.EIO, b"")
    kernel.errors.pop(-2)
    assert [type(error) for error in kernel.errors] == [AssertionError, AssertionError]


# -- plain files of a listing ------------------------------------------------------------------------------------------

LISTED = [(3, b"file"), (4, b"link"), (5, b"a name that takes more room"), (6, b"directory"), (7, b"file")]


@pytest.fixture
def listed(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(b"12345")
    os.utime(tmp_path / "file", ns=(-1, 1_000_000_007))
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "a name that takes more room").write_bytes(b"x")
    (tmp_path / "directory").mkdir()
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


def _pack(fd: int, names: list[Any], first: int = 0, room: int = 4096) -> Any:
    assert found.device is not None
    return found.device.pack_plain(_layers(fd), False, names, first, room, 100, 5)


def _layers(*fds: int) -> list[tuple[int, int, int]]:
    return [(fd, os.fstat(fd).st_dev, number << 48) for number, fd in enumerate(fds, start=1)]


def test_plain_files(listed: int) -> None:
    entries, files = _pack(listed, LISTED)
    at = 0
    assert len(files) == 3, "the directory is none"
    for (position, name), (same, layer, number, real, kind, length) in zip(LISTED, files, strict=False):
        st = os.stat(name, dir_fd=listed, follow_symlinks=False)
        assert (same, layer, number, real) == (name, 0, 1 << 48 | st.st_ino, st.st_ino)
        assert kind == st.st_mode & 0o170000
        times = (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)
        assert layouts.ENTRY.unpack_from(entries, at) == (
            *(number, 0, 100, 100, 5, 5, number, st.st_size, st.st_blocks),
            *(ns // 10**9 & (1 << 64) - 1 for ns in times),
            *(ns % 10**9 for ns in times),
            *(st.st_mode, 1, st.st_uid, st.st_gid, 0, st.st_blksize, 0),
        )
        begin = at + layouts.ENTRY.size
        assert layouts.DIRENT.unpack_from(entries, begin) == (number, position, len(name), kind >> 12)
        begin += layouts.DIRENT.size
        assert entries[begin : at + length] == name + bytes(-len(name) % 8)
        at += length
    assert at == len(entries)
    assert _pack(listed, LISTED, 3) == (b"", [])
    assert [file[0] for file in _pack(listed, LISTED, 4)[1]] == [b"file"]
    assert _pack(listed, LISTED, 5) == (b"", [])


@pytest.mark.parametrize("room", [0, 159, 160, 319, 320, 500])
def test_room_for_plain_files(listed: int, room: int) -> None:
    entries, files = _pack(listed, LISTED, 0, room)
    assert len(entries) == len(files) * 160 <= room < len(entries) + 184


@pytest.mark.parametrize("make", ["perhaps a whiteout", "two names", "fifo", "missing", "elsewhere"])
def test_what_is_not_plain(listed: int, tmp_path: Path, make: str) -> None:
    path = tmp_path / "one"
    if make == "perhaps a whiteout":
        path.write_bytes(b"")
        os.setxattr(path, "user.overlay.whiteout", b"")
    elif make == "two names":
        path.write_bytes(b"x")
        path.with_name("two").hardlink_to(path)
    elif make == "fifo":
        os.mkfifo(path)
    elif make == "elsewhere":
        assert found.device is not None
        path.write_bytes(b"x")
        elsewhere = [(listed, os.stat("/proc").st_dev, 0)]
        assert found.device.pack_plain(elsewhere, False, [(3, b"one")], 0, 4096, 1, 0) == (b"", [])
        return
    assert _pack(listed, [(3, b"one"), (4, b"file")]) == (b"", [])


@pytest.fixture
def above(tmp_path: Path) -> Iterator[int]:
    """A layer above `listed`."""
    directory = tmp_path / "directory"
    (directory / "above").write_bytes(b"")
    (directory / "marked").write_bytes(b"x")
    os.setxattr(directory / "marked", "user.x", b"")
    fd = os.open(directory, os.O_PATH)
    yield fd
    os.close(fd)


def test_plain_files_of_several_layers(listed: int, above: int, tmp_path: Path) -> None:
    """Each is of the topmost layer that has its name; and what has marks above another layer is not plain."""
    assert found.device is not None
    pack = found.device.pack_plain
    names = [(3, b"above"), (4, b"file"), (5, b"link")]
    _, files = pack(_layers(above, listed), False, names, 0, 4096, 1, 0)
    assert [(name, layer, number >> 48) for name, layer, number, *_ in files] == [
        (b"above", 0, 1),
        (b"file", 1, 2),
        (b"link", 1, 2),
    ]
    assert pack(_layers(above, listed), True, names, 0, 4096, 1, 0)[1] == files, "in the upper it is without marks too"
    assert pack(_layers(above), True, [(3, b"marked")], 0, 4096, 1, 0) == (b"", []), (
        "its mark counts where it is written"
    )
    assert pack(_layers(above, listed), False, [(3, b"marked")], 0, 4096, 1, 0) == (b"", [])
    assert len(pack(_layers(listed, above), False, [(3, b"marked")], 0, 4096, 1, 0)[1]) == 1, "nothing lies below"
    assert pack(_layers(above, listed), False, [(3, b"missing")], 0, 4096, 1, 0) == (b"", [])
    assert pack(_layers(*[listed] * 65), False, names, 0, 4096, 1, 0) == (b"", [])
    assert pack([], False, names, 0, 4096, 1, 0) == (b"", [])


def test_malformed_calls(listed: int) -> None:
    assert found.device is not None
    for layers in ([1], [(1, 2)], [("x", 1, 2)]):
        with pytest.raises(TypeError):
            found.device.pack_plain(layers, False, LISTED, 0, 4096, 1, 0)
    for names in ([b"file"], [(3, "file")], [(3,)], [("x", b"file")], [(-1, b"file")]):
        with pytest.raises((TypeError, OverflowError)):
            _pack(listed, names)
    assert _pack(listed, LISTED, -1) == (b"", [])


# -- anything at all ---------------------------------------------------------------------------------------------------


def test_random_messages(tmp_path: Path) -> None:
    """In a process of its own, with a module that watches its memory: whatever comes, it does not crash nor go astray,
    and answers what has to be answered."""
    seed = random.randrange(1 << 32)
    module = tmp_path / "_device.so"
    include = sysconfig.get_paths()["include"]
    sources = sorted(map(str, (PROJECT / "fuseunion/engines/fuse/wire/native").rglob("*.c")))
    watching = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [
        "gcc",
        "-std=gnu11",
        "-O1",
        *watching,
        "-fPIC",
        "-shared",
        f"-I{include}",
        *sources,
        "-o",
        str(module),
    ]
    subprocess.run(command, check=True, capture_output=True)
    preload = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True).stdout
    code = f"from tests.unit.test_device import feed; feed({seed}, {str(module)!r})"
    environment = {**os.environ, "LD_PRELOAD": preload.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "fed\n"), f"seed {seed}: {done.stderr[-2000:]}"


def _loaded(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_device", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def feed(seed: int, module: str) -> None:
    """Send 4,000 requests with random bodies, and wrong lengths, to handlers that answer at random.

    :param module: the path of an extension module
    """
    dice = random.Random(seed)
    kernel = Kernel()
    kernel.device = _loaded(module)
    shared = os.memfd_create("shared")
    place = Path(tempfile.mkdtemp())
    for name in ("README.md", "Makefile", "LICENSE"):
        shutil.copy(PROJECT / name, place)
    directory = os.open(place, os.O_PATH)
    device = os.fstat(directory).st_dev
    names = [(number, name) for number, name in enumerate([b"README.md", b"Makefile", b"LICENSE", b"x" * 300])]
    kernel.attach(*(opcode for opcode, _, _ in REQUESTS.values()))
    kernel.ours.setblocking(False)
    answers = [0, errno.EPERM, b"", b"x" * 128, b"x" * 70000, OSError(errno.EIO, "x"), ValueError("y"), object()]
    for _ in range(4000):
        kernel.answer = dice.choice(answers)
        if not dice.randrange(10):
            kernel.device.share(NODE, shared, dice.randrange(64))
            kernel.device.share_directory(NODE, (directory,) * dice.randrange(1, 4), dice.randrange(64))
            layers = [(directory, device, 0)] * dice.randrange(4)
            kernel.device.pack_plain(layers, dice.random() < 0.5, names, dice.randrange(4), dice.randrange(700), 1, 0)
            name, number = names[dice.randrange(4)][1], os.stat(place / "LICENSE").st_ino
            found = kernel.device.read_plain(
                directory, name, device, number, dice.randrange(1 << 17), dice.random() < 0.5, dice.choice([0, NODE])
            )
            for opened in (found, kernel.device.open_plain(directory, name, device, number)):
                if isinstance(opened, int):
                    os.close(opened)
            known = [(number, name, 9, 9, dice.randrange(1 << 16)) for number, name in names]
            kernel.device.pack_known(directory, device, known, dice.randrange(700), 1, 0)
        body = bytes(dice.randrange(256) for _ in range(dice.choice([0, 1, 7, 8, 16, 24, 40, 63, 64, 88, 200])))
        length = HEADER.size + len(body) + dice.choice([0] * 8 + [-1, 1, 1 << 31])
        opcode = dice.choice([dice.randrange(64), dice.randrange(1 << 32)])
        kernel.ours.send(HEADER.pack(length & 0xFFFFFFFF, opcode, dice.randrange(1 << 63), NODE, 0, 0, 0, 0) + body)
        kernel.device.serve(1, 0, 0)
        try:
            message = kernel.ours.recv(1 << 21)
        except BlockingIOError:
            continue
        assert OUT.unpack_from(message)[0] == len(message)
    shutil.rmtree(place)
    print("fed")
