"""Which directories the extension module may look at by itself, and until when
(wire/directories/shared_directories.py)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.inode import Inode
from fuseunion.engines.fuse.wire import layouts
from fuseunion.engines.fuse.wire.answers import Answers
from fuseunion.steps import in_one_piece
from tests.support.inprocess import InProcess
from tests.support.wire_kernel import ABSENT, Kernel, kernel
from tests.support.wire_union import answers, answers_of, union_in

__all__ = ["answers", "kernel"]

ASKED = (errno.EPERM, b"")
"""What the handler says."""

ATIME, ATIME_NSEC, NLINK = slice(24, 32), slice(48, 52), slice(64, 68)
"""In struct fuse_attr. Python need not know of each read."""


@pytest.fixture
def attached(kernel: Kernel) -> Kernel:
    kernel.attach(layouts.GETATTR, layouts.LOOKUP)
    kernel.answer = errno.EPERM
    return kernel


def _make(base: Path, *lowers: str) -> None:
    """A directory of the lowers alone, one of the upper alone, and two that both have, with more below."""
    for name in (
        *(f"{lower}/{name}" for lower in lowers for name in ("lower only", "both/of all", "empty")),
        *("upper/upper only/below", "upper/both/of all", "upper/both/of upper", "work"),
    ):
        (base / name).mkdir(parents=True)
    for lower in lowers:
        (base / lower / "both/file").write_text("data")


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[InProcess]:
    _make(tmp_path, "lower")
    with union_in(tmp_path) as union:
        yield union


def _asked_by_the_kernel(kernel: Kernel, inode: Inode) -> bytes | None:
    """What the module says of an inode; None where it asks Python."""
    error, attributes = kernel.ask(layouts.GETATTR, bytes(16), inode.ino)
    return None if (error, attributes) == ASKED else _without_atime(attributes[16:])


def _said_by_python(answers: Answers, inode: Inode) -> bytes:
    return _without_atime(answers._getattr(inode.ino)[40:])


def _without_atime(attributes: bytes) -> bytes:
    left = bytearray(attributes)
    left[ATIME], left[ATIME_NSEC] = bytes(8), bytes(4)
    return bytes(left)


def _shared(kernel: Kernel, answers: Answers, inode: Inode) -> bool:
    """Whether the module says the attributes of a directory, which are Python's, once that was asked for them twice."""
    answers._getattr(inode.ino)
    said = _said_by_python(answers, inode)
    found = _asked_by_the_kernel(kernel, inode)
    assert found in (None, said)
    return found is not None


def test_what_is_asked_for_once_is_not_shared(kernel: Kernel, inside: InProcess, answers: Answers) -> None:
    both, alone = inside.find("both"), inside.find("upper only")
    for inode in (both, alone, both, alone):
        answers._getattr(inode.ino)
        assert _asked_by_the_kernel(kernel, inode) is None


@pytest.mark.parametrize(
    ("path", "shared"), [("both", True), ("upper only", True), ("", True), ("lower only", False), ("both/of all", True)]
)
def test_what_is_shared(kernel: Kernel, inside: InProcess, answers: Answers, path: str, shared: bool) -> None:
    inode = inside.find(path)
    assert _shared(kernel, answers, inode) is shared
    if shared:
        inside.mkdir(f"{path}/new".lstrip("/"))
        inside.create(f"{path}/file that is made".lstrip("/"))
        found = _asked_by_the_kernel(kernel, inode)
        assert found == _said_by_python(answers, inode)


def _renamed(inside: InProcess) -> None:
    inside.rename("both", "other")


def _emptied(inside: InProcess) -> None:
    inside.unlink("both/file")
    inside.rmdir("both/of all")
    inside.rmdir("both/of upper")


def _removed(inside: InProcess) -> None:
    _emptied(inside)
    inside.rmdir("both")


def _replaced(inside: InProcess) -> None:
    _emptied(inside)
    inside.mkdir("new")
    inside.rename("new", "both")


def _not_replaced(inside: InProcess) -> None:
    """It was made ready for that, and stays."""
    _emptied(inside)
    inside.mkdir("new")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RealDir, "rename", _fails)
        with pytest.raises(OSError, match="fails"):
            inside.rename("new", "both")
    inside.mkdir("both/new")


def _fails(*_arguments: object) -> None:
    raise OSError(errno.EIO, "fails")


@pytest.mark.parametrize("change", [_renamed, _emptied, _removed, _replaced, _not_replaced])
def test_what_is_said_after_a_change(
    kernel: Kernel, inside: InProcess, answers: Answers, change: Callable[[InProcess], None]
) -> None:
    """Somebody has it open all the while."""
    both, below = inside.find("both"), inside.find("both/of all")
    for inode in (both, below):
        assert _shared(kernel, answers, inode)
    change(inside)
    for inode in (both, below):
        assert _asked_by_the_kernel(kernel, inode) in (None, _said_by_python(answers, inode))


def test_one_that_was_removed_while_what_is_in_it_goes(kernel: Kernel, inside: InProcess, answers: Answers) -> None:
    _emptied(inside)
    both = inside.find("both")
    assert isinstance(both, Directory)
    assert _shared(kernel, answers, both)
    steps = inside.union.rmdir(inside.union.root, b"both")
    while not both.removed:
        next(steps)
    assert _asked_by_the_kernel(kernel, both) in (None, _said_by_python(answers, both))
    in_one_piece(steps)
    assert _asked_by_the_kernel(kernel, both) in (None, _said_by_python(answers, both))


def test_what_was_renamed_is_shared_again(kernel: Kernel, inside: InProcess, answers: Answers) -> None:
    """No lower takes part in it any more, and its links are counted."""
    both = inside.find("both")
    assert _shared(kernel, answers, both)
    _renamed(inside)
    assert _asked_by_the_kernel(kernel, both) is None
    assert _shared(kernel, answers, both)
    assert _nlink(kernel, both) == 4


def _nlink(kernel: Kernel, inode: Inode) -> int:
    attributes = _asked_by_the_kernel(kernel, inode)
    assert attributes is not None
    return int.from_bytes(attributes[NLINK], "little")


def test_the_links_of_several_are_one(kernel: Kernel, inside: InProcess, answers: Answers) -> None:
    both, alone = inside.find("both"), inside.find("upper only")
    assert _shared(kernel, answers, both)
    assert _shared(kernel, answers, alone)
    assert (_nlink(kernel, both), _nlink(kernel, alone)) == (1, 3)


def test_links_that_are_never_counted(kernel: Kernel, attached: Kernel, tmp_path: Path) -> None:
    _make(tmp_path, "lower")
    with union_in(tmp_path, static_nlink=True) as inside, answers_of(inside) as answers:
        alone = inside.find("upper only")
        assert _shared(kernel, answers, alone)
        assert _nlink(kernel, alone) == 1


def test_a_directory_of_many_layers_is_not_asked_for_names(kernel: Kernel, attached: Kernel, tmp_path: Path) -> None:
    lowers = [f"lower {number}" for number in range(6)]
    _make(tmp_path, *lowers)
    with union_in(tmp_path, *lowers) as inside, answers_of(inside) as answers:
        both = inside.find("both")
        assert answers._lookup(both.ino, b"none") == answers._entries.negative
        assert _asked_by_the_kernel(kernel, both) is None
        assert _shared(kernel, answers, both)
        assert kernel.ask(layouts.LOOKUP, b"none\0", both.ino) == ASKED
        inside.create("both/new")
        assert _asked_by_the_kernel(kernel, both) == _said_by_python(answers, both)


def test_one_that_is_copied_up_is_shared_again(kernel: Kernel, inside: InProcess, answers: Answers) -> None:
    directory = inside.find("lower only")
    assert answers._lookup(directory.ino, b"none") == answers._entries.negative
    assert kernel.ask(layouts.LOOKUP, b"none\0", directory.ino) == (0, ABSENT)
    inside.create("lower only/new")
    assert kernel.ask(layouts.LOOKUP, b"none\0", directory.ino) == ASKED
    assert _shared(kernel, answers, directory)
    assert kernel.ask(layouts.LOOKUP, b"none\0", directory.ino) == (0, ABSENT)


def test_nothing_is_shared_while_a_lower_is_being_added(kernel: Kernel, inside: InProcess, answers: Answers) -> None:
    """The module would let the kernel remember that a name is not there, which the lower may have."""
    both, alone = inside.find("both"), inside.find("upper only")
    requests = answers._requests
    requests.renewed = set()
    for inode in (both, alone):
        assert not _shared(kernel, answers, inode)
        answers._lookup(inode.ino, b"none")
        answers._mknod(inode.ino, 0, 0, 0, 0, 0o100644, 0, b"made")
        assert not _shared(kernel, answers, inode)
        assert kernel.ask(layouts.LOOKUP, b"none\0", inode.ino) == ASKED
    requests.renewed = None
    for inode in (both, alone):
        assert _shared(kernel, answers, inode)
        assert kernel.ask(layouts.LOOKUP, b"none\0", inode.ino) == (0, ABSENT)
