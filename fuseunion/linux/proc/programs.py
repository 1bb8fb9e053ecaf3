"""What a process is called, as the kernel says without looking into its memory.

`/proc/PID/cmdline` is not read: the kernel takes it out of the process's memory, and a page of that may be one of a
file of the mount whose daemon asks, which would wait for itself (fs/proc/base.c get_mm_cmdline). The name and the
program's file are the kernel's own (comm_show, proc_exe_link).
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Program(NamedTuple):
    """A program; empty for what is not known.

    Attributes:
        name: of the thread that asked, at most 15 bytes (proc(5), comm).
        path: of the file that it runs, as the process sees it.
    """

    name: str
    path: str


def program(pid: int) -> Program:
    """The program of a process or thread; nothing is known of one that has gone, and of 0."""
    if pid <= 0:
        return Program("", "")
    name = path = ""
    try:
        fd = os.open(f"/proc/{pid}/comm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            name = os.fsdecode(os.read(fd, 64).rstrip(b"\n"))
        finally:
            os.close(fd)
        path = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        pass  # it has gone, or is another user's, whose file is not said
    return Program(name, path)
