"""Loop devices: those of the files of one test, and one that somebody else takes, as mount(8) does."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import wait_until


def of(root: Path) -> list[str]:
    """The devices that show a file below a directory, as "loop3 FILE"."""
    found = []
    for backing in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        try:
            path = backing.read_text().rstrip("\n")
        except OSError:
            continue  # freed meanwhile
        if Path(path).is_relative_to(root):
            found.append(f"{backing.parent.parent.name} {path}")
    return found


def left_of(root: Path) -> list[str]:
    """The same, when those had a moment that are freed with a process that is just ending."""
    try:
        wait_until(lambda: not of(root), "loop devices to be freed", 3)
    except AssertionError:
        return of(root)
    return []


@contextmanager
def taken(file: Path, *options: str) -> Iterator[str]:
    """Somebody has a device for a file."""
    command = ["losetup", "--show", "-f", *options, str(file)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
