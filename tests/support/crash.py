"""Dying in the middle: run something in a child process that ends, without any clean-up, before its Nth change.

kill -9 between two system calls is what the core promises to survive. The child's own functions of os that change a
filesystem are counted, and the process leaves with os._exit before the chosen one: no `finally`, no `except` runs.

A test that does so again and again takes the distance of the numbers as its parameter `every` (`before_changes`), so
that `make test` has a sample, and `make stress` all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from fuseunion.linux import syscalls

_CHANGES = (
    "chmod", "chown", "copy_file_range", "fchmod", "fchown", "ftruncate", "link", "mkdir", "mknod", "open",
    "posix_fallocate", "pwrite", "rename", "replace", "rmdir", "setxattr", "removexattr", "symlink", "unlink", "utime",
    "write",
)  # fmt: skip
_FINISHED = 0
_KILLED = 17


def before_changes(every: int) -> pytest.MarkDecorator:
    """Run a test with `every` as given; under `make stress` also with 1: before each single change."""
    each = pytest.param(1, id="each", marks=pytest.mark.stress)
    return pytest.mark.parametrize("every", [pytest.param(every, id="some"), each])


def run_until_change(number: int, action: Callable[[], None]) -> bool:
    """Run `action` in a child that dies before its change `number` (from 0).

    Returns:
        True when the child came to its end alive, because there are not so many changes.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _count_down(number)
            action()
            status = _FINISHED
        finally:
            os._exit(status)
    _, result = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(result)
    assert code in (_FINISHED, _KILLED), f"the child failed with {code}"
    return code == _FINISHED


def _count_down(number: int) -> None:
    left = [number]

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if function is not real_open or (len(args) > 1 and args[1] & os.O_CREAT):
                if left[0] == 0:
                    os._exit(_KILLED)
                left[0] -= 1
            return function(*args, **kwargs)

        return call

    real_open = os.open
    for name in _CHANGES:
        setattr(os, name, dying(getattr(os, name)))
    syscalls.renameat2 = dying(syscalls.renameat2)
    syscalls.ficlone = dying(syscalls.ficlone)
    syscalls.fallocate = dying(syscalls.fallocate)
