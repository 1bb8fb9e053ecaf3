"""What is mounted, as /proc/self/mountinfo tells it (proc(5))."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class MountPoint(NamedTuple):
    """One line of mountinfo, as far as the tests need it."""

    target: str
    fstype: str
    source: str


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mounts(pid: int | None = None) -> list[MountPoint]:
    """The mounts that a process sees, in mount order; the caller's when no process is named."""
    found = []
    for line in Path("/proc", "self" if pid is None else str(pid), "mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        fstype, source = right.split()[:2]
        found.append(MountPoint(_unescape(left.split()[4]), fstype, _unescape(source)))
    return found


def mounts_under(directory: Path) -> list[MountPoint]:
    """The mounts at or beneath a directory."""
    top = str(directory)
    return [mount for mount in mounts() if mount.target == top or mount.target.startswith(top + "/")]


def mount_at(path: Path) -> MountPoint | None:
    """The topmost mount exactly at a path."""
    found = [mount for mount in mounts() if mount.target == str(path)]
    return found[-1] if found else None
