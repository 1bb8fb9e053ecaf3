"""A system call that fails: run something in which the Nth call to the system answers an error, once.

Every function of os that asks the kernel for something and may fail is counted, and so are the system calls that os
does not offer. What cannot fail in a way that anybody could act upon is left out: close(2), umask(2), dup(2).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from fuseunion.linux import syscalls

_OF_OS = (
    "access", "chmod", "chown", "copy_file_range", "fchmod", "fchown", "fstat", "fsync", "ftruncate", "getxattr",
    "link", "listdir", "listxattr", "lseek", "lstat", "mkdir", "mknod", "open", "pread", "pwrite", "read", "readlink",
    "removexattr", "rename", "rmdir", "scandir", "setxattr", "stat", "symlink", "unlink", "utime", "write",
)  # fmt: skip
_OF_OURS = ("birth_time_ns", "ficlone", "name_to_handle_at", "openat2", "renameat2")


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


@contextmanager
def interrupted(number: int, action: Callable[[], None]) -> Iterator[Fault]:
    """Do something just before call `number` (from 0) of the block."""
    fault = Fault()
    left = number

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                fault.call = name
                action()
            return function(*args, **kwargs)

        return call

    real = [
        (module, name, getattr(module, name))
        for module, names in ((os, _OF_OS), (syscalls, _OF_OURS))
        for name in names
    ]
    try:
        for module, name, function in real:
            setattr(module, name, counted(name, function))
        yield fault
    finally:
        for module, name, function in real:
            setattr(module, name, function)
