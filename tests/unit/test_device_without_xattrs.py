"""What the extension module says of inodes without extended attributes (wire/native/repeated/without_xattrs.c), and who
tells it of them (wire/xattrs.py)."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.wire import layouts
from fuseunion.engines.fuse.wire.answers import Answers
from fuseunion.engines.fuse.wire.xattrs import WithoutXattrs
from tests.support.inprocess import InProcess
from tests.support.wire_kernel import NODE, Kernel, kernel
from tests.support.wire_union import answers, union_in

__all__ = ["answers", "kernel"]

ASKED = (errno.EPERM, b"")
"""What the handler says."""

KNOWN = (b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default")
ACL = b"\2\0\0\0" + b"".join(struct.pack("<HHI", tag, 6, 0xFFFFFFFF) for tag in (1, 4, 0x10, 0x20))


def _get(kernel: Kernel, name: bytes = KNOWN[0], node: int = NODE) -> tuple[int, bytes]:
    return kernel.ask(layouts.GETXATTR, struct.pack("=II", 100, 0) + name + b"\0", node)


def _list(kernel: Kernel, room: int = 100, node: int = NODE) -> tuple[int, bytes]:
    return kernel.ask(layouts.LISTXATTR, struct.pack("=II", room, 0), node)


@pytest.fixture
def attached(kernel: Kernel) -> Kernel:
    kernel.attach(layouts.GETXATTR, layouts.LISTXATTR, layouts.SETXATTR)
    kernel.answer = errno.EPERM
    return kernel


def test_an_inode_without_any(attached: Kernel) -> None:
    assert _get(attached) == _list(attached) == ASKED
    attached.device.note_without_xattrs(NODE)
    attached.calls.clear()
    for name in KNOWN:
        assert _get(attached, name) == (errno.ENODATA, b"")
    assert _list(attached) == (0, b"")
    assert _list(attached, room=0) == (0, bytes(8)), "the size alone"
    assert not attached.calls
    assert _get(attached, node=NODE + 1) == _list(attached, node=NODE + 1) == ASKED
    attached.device.may_have_xattrs(NODE + 1)
    assert _list(attached) == (0, b"")
    attached.device.may_have_xattrs(NODE)
    assert _get(attached) == _list(attached) == ASKED


@pytest.mark.parametrize("name", [b"user.name", b"trusted.overlay.opaque", b"security.capability2", b"security", b""])
def test_other_names_are_asked_for(attached: Kernel, name: bytes) -> None:
    """The union may answer what lies nowhere."""
    attached.device.note_without_xattrs(NODE)
    assert _get(attached, name) == ASKED


@pytest.mark.parametrize("opcode", [layouts.GETXATTR, layouts.LISTXATTR])
def test_a_request_that_is_too_short(attached: Kernel, opcode: int) -> None:
    attached.device.note_without_xattrs(NODE)
    assert attached.ask(opcode, bytes(7)) == (errno.EIO, b"")


def test_a_name_without_an_end(attached: Kernel) -> None:
    attached.device.note_without_xattrs(NODE)
    assert attached.ask(layouts.GETXATTR, bytes(8) + KNOWN[0])[0] == errno.EIO


def test_what_the_kernel_forgets_is_forgotten(attached: Kernel) -> None:
    """Another may get the number."""
    attached.device.note_without_xattrs(NODE)
    attached.send(layouts.FORGET, struct.pack("=Q", 1))
    attached.serve()
    assert _list(attached) == ASKED


def test_another_mount_begins_with_nothing(attached: Kernel) -> None:
    attached.device.note_without_xattrs(NODE)
    attached.attach(layouts.LISTXATTR)
    assert _list(attached) == ASKED


def test_an_acl_that_is_set_without_python(attached: Kernel, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    device = attached.device
    device.share(NODE, fd, device.ATTRIBUTES | device.XATTRS)
    device.note_without_xattrs(NODE)
    body = struct.pack("=II", len(ACL), 0) + KNOWN[1] + b"\0" + ACL
    assert attached.ask(layouts.SETXATTR, body) == (0, b"")
    assert _get(attached, KNOWN[1]) == ASKED
    device.unshare(NODE)
    os.close(fd)


def test_one_may_take_the_place_of_another(attached: Kernel) -> None:
    numbers = range(NODE, NODE + 200_000)
    for number in numbers:
        attached.device.note_without_xattrs(number)
    left = [number for number in numbers if _list(attached, node=number)[0] == 0]
    assert 32768 < len(left) <= 65536
    for number in left:
        attached.device.may_have_xattrs(number)
    assert not [number for number in left if _list(attached, node=number)[0] == 0]


@pytest.mark.parametrize("number", [-1, 1 << 64, "1"])
def test_what_is_no_number(attached: Kernel, number: object) -> None:
    for function in (attached.device.note_without_xattrs, attached.device.may_have_xattrs):
        with pytest.raises((OverflowError, TypeError)):
            function(number)


@pytest.mark.parametrize(
    "arguments",
    [(), (0,), (0, ()), (0, [0]), (0, [()]), (0, [(0, "text", 0, 0)]), (0, [(0, b"a\0b", 0, 0)]), (None, [])],
    ids=repr,
)
def test_malformed_files(kernel: Kernel, arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        kernel.device.are_without_xattrs(*arguments)


# -- who tells the module ----------------------------------------------------------------------------------------------

NAMES = [f"f{number}" for number in range(10)]


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[InProcess]:
    for name in ("lower/d", "lower/e", "upper/d", "work"):
        (tmp_path / name).mkdir(parents=True)
    for name in NAMES:
        (tmp_path / "lower/d" / name).write_text(name)
        (tmp_path / "upper/d" / f"u{name}").write_text(name)
    os.symlink("f1", tmp_path / "lower/d/link")
    os.setxattr(tmp_path / "lower/d/f8", "user.name", b"value")
    with union_in(tmp_path) as union:
        yield union


def _is_noted(kernel: Kernel, number: int) -> bool:
    return _list(kernel, node=number) != ASKED


@pytest.mark.parametrize("path", ["d/f1", "d/uf1", "d/link", "d", "e"])
@pytest.mark.parametrize("way", ["get", "list"])
def test_who_has_none_is_noted(kernel: Kernel, inside: InProcess, answers: Answers, path: str, way: str) -> None:
    number = inside.find(path).ino
    if way == "get":
        assert answers._xattrs.getxattr(number, KNOWN[0]) == errno.ENODATA
    else:
        assert answers._xattrs.listxattr(number, 0) == b""
    assert _is_noted(kernel, number)
    assert answers._xattrs.getxattr(number, KNOWN[1]) == errno.ENODATA


@pytest.mark.parametrize("path", ["d/f1", "d/uf1", "d/link", "d"])
@pytest.mark.parametrize("way", ["get", "list"])
def test_who_lost_the_place_gets_it_back(
    kernel: Kernel, inside: InProcess, answers: Answers, path: str, way: str
) -> None:
    number = inside.find(path).ino
    answers._xattrs.listxattr(number, 0)
    kernel.device.may_have_xattrs(number)  # as if another had it
    if way == "get":
        assert answers._xattrs.getxattr(number, KNOWN[0]) == errno.ENODATA
    else:
        assert answers._xattrs.listxattr(number, 0) == b""
    assert _is_noted(kernel, number)


def test_who_is_found_again_stays_noted(kernel: Kernel, inside: InProcess, answers: Answers) -> None:
    """The end of what stood for it before does not undo that."""
    inode = inside.find("d/f1")
    answers._xattrs.listxattr(inode.ino, 0)
    answers._xattrs._note(inode)
    assert _is_noted(kernel, inode.ino)


def test_what_they_lack_is_kept_once(inside: InProcess, answers: Answers) -> None:
    """Of a million files, too."""
    kept = set()
    for path in ("d/f1", "d/f2", "d/link", "d"):
        inode = inside.find(path)
        answers._xattrs.listxattr(inode.ino, 0)
        assert isinstance(inode.absent_xattrs, WithoutXattrs)
        kept.add(id(inode.absent_xattrs._absent))
    assert len(kept) == 1


def test_who_has_one_is_not_noted(kernel: Kernel, inside: InProcess, answers: Answers) -> None:
    number = inside.find("d/f8").ino
    assert answers._xattrs.listxattr(number, 0) == b"user.name\0"
    assert answers._xattrs.getxattr(number, KNOWN[0]) == errno.ENODATA
    assert not _is_noted(kernel, number)


def test_others_of_the_directory_are_looked_at_too(kernel: Kernel, inside: InProcess, answers: Answers) -> None:
    """Which lie where the first lies: four of them, then eight."""
    numbers = {name: inside.find(f"d/{name}").ino for name in [*NAMES, *(f"u{name}" for name in NAMES)]}
    for first, noted in (("f0", 5), ("f9", 9)):
        answers._xattrs.listxattr(numbers[first], 0)
        assert sum(_is_noted(kernel, number) for number in numbers.values()) == noted
    assert not _is_noted(kernel, numbers["f8"]), "it has one"
    assert not [name for name in NAMES if _is_noted(kernel, numbers[f"u{name}"])]


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("d/f1", "copied up"),
        *((path, change) for path in ("d/f1", "d/uf1", "d") for change in ("set", "ACL set", "refreshed", "one less")),
    ],
)
def test_who_may_have_some_is_noted_no_more(
    kernel: Kernel, inside: InProcess, answers: Answers, path: str, change: str
) -> None:
    inode = inside.find(path)
    assert answers._xattrs.listxattr(inode.ino, 0) == b""
    assert _is_noted(kernel, inode.ino)
    match change:
        case "set":
            inside.setxattr(path, b"user.a", b"b")
            assert not _is_noted(kernel, inode.ino)
            assert answers._xattrs.listxattr(inode.ino, 0) == b"user.a\0"
        case "ACL set":
            inside.setxattr(path, KNOWN[1], ACL)
            assert not _is_noted(kernel, inode.ino)
            assert answers._xattrs.getxattr(inode.ino, KNOWN[1]) == ACL
        case "copied up":
            inside.copied(path)
        case "refreshed":
            inode.forget_answers()
        case "one less":
            inode.may_have(KNOWN[1])
            assert KNOWN[0] in inode.absent_xattrs
            assert KNOWN[1] not in inode.absent_xattrs
    assert not _is_noted(kernel, inode.ino)


def test_who_shows_where_things_lie_lists_that(kernel: Kernel, inside: InProcess) -> None:
    answers = Answers(Requests(inside.union, list_layers=True), 1.0)
    number = inside.find("d/f1").ino
    assert b"layer" in answers._xattrs.listxattr(number, 0)
    assert answers._xattrs.getxattr(number, KNOWN[0]) == errno.ENODATA
    kernel.answer = errno.EPERM
    kernel.attach(layouts.LISTXATTR)
    assert not _is_noted(kernel, number)
