"""Dying in the middle: run something in a child process that ends, without any clean-up, before its Nth change.

kill -9 between two system calls is what the core promises to survive. The child's own functions of os that change a
filesystem are counted, and the process leaves with os._exit before the chosen one: no `finally`, no `except` runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from fuseunion.linux import syscalls

_CHANGES = (
    "chmod", "chown", "copy_file_range", "fchmod", "fchown", "ftruncate", "link", "mkdir", "mknod", "open", "pwrite",
    "rename", "rmdir", "setxattr", "removexattr", "symlink", "unlink", "utime",
)  # fmt: skip
_FINISHED = 0
_KILLED = 17


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
