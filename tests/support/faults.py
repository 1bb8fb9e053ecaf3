"""A system call that fails: run something in which the Nth call to the system answers an error, once.

Every function of os that asks the kernel for something and may fail is counted, and so are the system calls that os
does not offer. What cannot fail in a way that anybody could act upon is left out: close(2), umask(2), dup(2).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

from fuseunion.linux import syscalls

_OF_OS = (
    "access", "chmod", "chown", "copy_file_range", "fchmod", "fchown", "fdatasync", "fstat", "fsync", "ftruncate",
    "getxattr", "link", "listdir", "listxattr", "lseek", "lstat", "mkdir", "mknod", "open", "pread", "preadv", "pwrite",
    "read", "readlink", "removexattr", "rename", "rmdir", "scandir", "setxattr", "stat", "symlink", "unlink", "utime",
    "write",
)  # fmt: skip
_OF_OURS = ("birth_time_ns", "ficlone", "name_to_handle_at", "openat2", "renameat2")


Call = Callable[..., Any]


def interpose(wrapped: Callable[[str, Call], Call]) -> list[tuple[ModuleType, str, Call]]:
    """Put something else in the place of each of the functions.

    :param wrapped: what to put in the place of a function, given its name and the function
    :returns: module, name and function of each, as they were
    """
    real: list[tuple[ModuleType, str, Call]] = [
        (module, name, getattr(module, name))
        for module, names in ((os, _OF_OS), (syscalls, _OF_OURS))
        for name in names
    ]
    for module, name, function in real:
        setattr(module, name, wrapped(name, function))
    return real


class Fault:
    """What was made to fail.

    Attributes:
        call: the name of the function, or None when there were not so many calls.
    """

    def __init__(self) -> None:
        self.call: str | None = None


def failing(number: int, code: int) -> AbstractContextManager[Fault]:
    """Let call `number` (from 0) of the block fail with an errno."""

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    return interrupted(number, fail)


def failing_from(number: int, code: int) -> AbstractContextManager[Fault]:
    """Let call `number` (from 0) of the block fail with an errno, and all that come after it."""

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    return interrupted(number, fail, lasting=True)


@contextmanager
def interrupted(number: int, action: Callable[[], None], *, lasting: bool = False) -> Iterator[Fault]:
    """Do something just before call `number` (from 0) of the block; `lasting`: and before each that comes after it."""
    fault = Fault()
    left = number

    def counted(name: str, function: Call) -> Call:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                fault.call = name
            if left == -1 or (lasting and left < 0):
                action()
            return function(*args, **kwargs)

        return call

    real = interpose(counted)
    try:
        yield fault
    finally:
        for module, name, function in real:
            setattr(module, name, function)
