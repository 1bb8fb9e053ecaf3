"""The errno boundary: whatever a handler meets, the kernel gets an errno and the mount lives."""

from __future__ import annotations

import errno
import inspect
import os
from typing import Any

import pyfuse3
import pytest
import trio

from fuseunion.core.tree.handle import DirectoryHandle, FileHandle
from fuseunion.core.tree.state import Settings
from fuseunion.engines.fuse.pyfuse.operations import Operations
from fuseunion.engines.fuse.serving.requests import Requests

HANDLERS = sorted(
    name
    for name, function in vars(Operations).items()
    if inspect.iscoroutinefunction(inspect.unwrap(function)) and not name.startswith("_")
)
# These answer without the union: the kernel does not ask again.
ENOSYS = {"flush", "access"}


class Broken:
    """A union in which everything raises."""

    settings = Settings()

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self._error


class BrokenFile(FileHandle):
    """An open file of which nothing works."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattribute__(self, name: str) -> Any:
        if name in ("fd", "file", "outsider", "writable"):
            raise object.__getattribute__(self, "error")
        return object.__getattribute__(self, name)


class BrokenDirectory(DirectoryHandle):
    """An open directory of which nothing works."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattribute__(self, name: str) -> Any:
        if name in ("directory", "names"):
            raise object.__getattribute__(self, "error")
        return object.__getattribute__(self, name)


class Anything:
    """An argument that has every attribute; stands for contexts, fields and attributes of pyfuse3."""

    def __getattr__(self, name: str) -> int:
        return 0


def _kind(name: str) -> type[BrokenFile | BrokenDirectory]:
    return BrokenDirectory if "dir" in name else BrokenFile


def _call(name: str, error: Exception, kind: type[BrokenFile | BrokenDirectory] | None = None) -> None:
    operations = Operations(Requests(Broken(error)))  # type: ignore[arg-type]
    operations._handles[1] = (kind or _kind(name))(error)
    handler = getattr(operations, name)
    count = len(inspect.signature(inspect.unwrap(getattr(Operations, name))).parameters) - 1
    arguments: list[Any] = [1, b"name", b"x", Anything(), Anything(), Anything()][:count]
    if name == "rename":
        arguments = [1, b"a", 1, b"b", 0, Anything()]
    elif name == "setattr":
        arguments = [1, Anything(), Anything(), None, Anything()]
    elif name == "removexattr":
        arguments = [1, b"name", Anything()]
    elif name == "listxattr":
        arguments = [1, Anything()]
    elif name == "forget":
        arguments = [[(2, 1)]]
    elif name == "open":
        arguments = [1, os.O_RDONLY, Anything()]
    elif name in ("mkdir", "mknod", "create"):
        arguments = [1, b"n", 0o644, *[0] * (count - 4), Anything()]

    async def run() -> None:
        await handler(*arguments)

    trio.run(run)


def test_every_handler_of_pyfuse3_is_here() -> None:
    offered = {
        name
        for name, function in vars(pyfuse3.Operations).items()
        if inspect.iscoroutinefunction(function) and name != "poll"
    }
    assert offered <= set(HANDLERS)


@pytest.mark.parametrize("name", [name for name in HANDLERS if name != "forget"])
def test_a_bug_is_answered_with_eio(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        _call(name, ValueError("a bug"))
    assert caught.value.errno == (errno.ENOSYS if name in ENOSYS else errno.EIO)
    assert name in ENOSYS or "a bug" in caplog.text


@pytest.mark.parametrize("name", [name for name in HANDLERS if name not in ENOSYS | {"forget"}])
def test_an_os_error_keeps_its_errno(name: str) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        _call(name, OSError(errno.ENOSPC, "full"))
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("name", ["read", "write", "release", "fsync", "readdir", "releasedir", "fsyncdir"])
def test_a_handle_that_is_none(name: str) -> None:
    """A number that was never given out, or one of the other kind."""
    for wrong in (BrokenFile, BrokenDirectory):
        with pytest.raises(pyfuse3.FUSEError) as caught:
            _call(name, OSError(errno.ENOSPC, "full"), wrong)
        assert caught.value.errno == (errno.ENOSPC if wrong is _kind(name) else errno.EBADF)


@pytest.mark.parametrize("name", ["statfs", "getattr"])
def test_enosys_never_reaches_the_kernel_by_accident(name: str) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        _call(name, OSError(errno.ENOSYS, "not here"))
    assert caught.value.errno == errno.EOPNOTSUPP


def test_forget_survives_a_bug(caplog: pytest.LogCaptureFixture) -> None:
    _call("forget", ValueError("a bug"))
    assert "a bug" in caplog.text
