"""What /proc/PID/mountinfo says (proc(5)): the mounts that a process sees, this one or another.

The only reader of it. Paths are compared as text, since looking at a dead FUSE mount answers ENOTCONN.
"""

import os
import re
from collections.abc import Iterator
from typing import NamedTuple


class Mount(NamedTuple):
    """One line.

    Attributes:
        mount_id: field 1.
        device: st_dev of the files on it.
        target: where it is mounted.
        fstype: with the subtype, such as fuse.fuseunion.
        source: what was given as the device.
        raw_options: of the filesystem ("super options"), with separators within values as octal numbers.
    """

    mount_id: int
    device: int
    target: str
    fstype: str
    source: str
    raw_options: bytes

    def option(self, name: str) -> str | None:
        """The value of one option of the filesystem, as it was given to mount(2); None where it has none."""
        for word in self.raw_options.split(b","):
            key, equals, value = word.partition(b"=")
            if equals and key == name.encode():
                return _unescape(value)
        return None


def mounts(process: int | str = "self") -> Iterator[Mount]:
    """Every mount, in the order in which they were made on each path.

    Args:
        process: whose; one in another mount namespace sees others.
    Raises:
        OSError: the process has ended or is not ours to look at, or there is no /proc.
    """
    with open(f"/proc/{process}/mountinfo", "rb") as file:
        for line in file:
            yield _parse(line)


def mount_at(path: str) -> Mount | None:
    """The topmost mount whose mount point is exactly this path.

    Args:
        path: absolute, without symbolic links.
    """
    found = None
    for mount in mounts():
        if mount.target == path:
            found = mount
    return found


def mount_above(path: str) -> Mount | None:
    """The mount that a path lies on, found by its text: the topmost of the longest mount point.

    Args:
        path: absolute, without symbolic links.
    """
    found = None
    for mount in mounts():
        holds = path == mount.target or path.startswith(f"{mount.target.rstrip('/')}/")
        if holds and (found is None or len(mount.target) >= len(found.target)):
            found = mount
    return found


def filesystem_type(device: int) -> str | None:
    """The type of a mounted filesystem; None where it has no mount, as the subvolumes of btrfs have none.

    Args:
        device: st_dev of a file on it.
    """
    return next((mount.fstype for mount in mounts() if mount.device == device), None)


def filesystem_of(path: str) -> str:
    """The type of the filesystem that a path lies on, for a message.

    Raises:
        OSError: the path cannot be looked at.
    """
    return filesystem_type(os.stat(path).st_dev) or "unknown"


def _parse(line: bytes) -> Mount:
    left, _, right = line.partition(b" - ")
    fields, more = left.split(b" "), right.rstrip(b"\n").split(b" ")
    major, minor = fields[2].split(b":")
    return Mount(
        mount_id=int(fields[0]),
        device=os.makedev(int(major), int(minor)),
        target=_unescape(fields[4]),
        fstype=os.fsdecode(more[0]),
        source=_unescape(more[1]),
        raw_options=more[-1],
    )


def _unescape(field: bytes) -> str:
    if b"\\" not in field:
        return os.fsdecode(field)
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes((int(match[1], 8),)), field))
