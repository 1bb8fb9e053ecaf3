"""How old a process is and what it uses (proc(5))."""

from __future__ import annotations

import os
from typing import NamedTuple


class Figures(NamedTuple):
    """What was found of a process; None for what may not be looked at, or has ended.

    Attributes:
        age: seconds since it began.
        memory: bytes that it has of its own, and its share of those that it has together with others.
        descriptors: how many are open.
    """

    age: int | None
    memory: int | None
    descriptors: int | None


def of(pid: int) -> Figures:
    """The figures of a process."""
    return Figures(_age(pid), _memory(pid), _descriptors(pid))


def _age(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat, open("/proc/uptime") as uptime:
            # The name, in parentheses, may hold anything. Field 22 is the beginning.
            began = int(stat.read().rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
            return max(int(float(uptime.read().split()[0]) - began), 0)
    except OSError:
        return None


def _memory(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            return next((int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:")), None)
    except OSError:
        return None


def _descriptors(pid: int) -> int | None:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
