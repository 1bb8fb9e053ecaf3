"""Ending all descendants of a process, wherever they went."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from contextlib import suppress

from fuseunion.linux.proc import processes


def children(parent: int) -> list[int]:
    """The children of a process, of all its threads.

    Without CONFIG_PROC_CHILDREN, every process is asked for its parent.
    """
    try:
        found = []
        for thread in os.listdir(f"/proc/{parent}/task"):
            with open(f"/proc/{parent}/task/{thread}/children") as file:
                found += [int(number) for number in file.read().split()]
        return found
    except FileNotFoundError:
        return [pid for pid in processes.process_ids() if _parent(pid) == parent]
    except OSError:
        return []


def _parent(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name stands in parentheses, and may hold any byte.
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return None  # ended meanwhile


def end(spared: Collection[int]) -> None:
    """SIGKILL for every descendant of this process, and wait until all have gone.

    Precondition: this process adopts orphans (prctl(2), PR_SET_CHILD_SUBREAPER), so that none can get away.

    Args:
        spared: children that end by themselves, and their descendants.
    """
    me = os.getpid()
    while True:
        wave = [pid for pid in children(me) if pid not in spared]
        if not wave:
            return
        for pid in _with_descendants(wave):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in wave:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _with_descendants(family: list[int]) -> list[int]:
    found: list[int] = []
    following = family
    while following:
        found += following
        following = [child for pid in following for child in children(pid)]
    return found
