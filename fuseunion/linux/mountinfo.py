"""What /proc/self/mountinfo says (proc(5)): the mounts that this process sees.

Paths are compared as text, since looking at a dead FUSE mount answers ENOTCONN.
"""

import os
import re
from typing import NamedTuple


class Mount(NamedTuple):
    """One line.

    Attributes:
        mount_id: field 1.
        device: st_dev of the files on it.
        target: where it is mounted.
        fstype: with the subtype, such as fuse.fuseunion.
        options: of the filesystem ("super options"), unescaped.
        source: what was given as the device.
        raw_options: the options as they stand there, with separators within values as octal numbers.
    """

    mount_id: int
    device: int
    target: str
    fstype: str
    options: str
    source: str
    raw_options: bytes

    def option(self, name: str) -> str | None:
        """The value of one option of the filesystem."""
        for word in self.raw_options.split(b","):
            key, equals, value = word.partition(b"=")
            if equals and key == name.encode():
                return _unescape(value)
        return None


def mounts() -> list[Mount]:
    """Every mount, in the order in which they were made on each path."""
    with open("/proc/self/mountinfo", "rb") as file:
        return [_parse(line) for line in file]


def mount_at(path: str) -> Mount | None:
    """The topmost mount whose mount point is exactly this path (absolute, without symbolic links)."""
    found = None
    for mount in mounts():
        if mount.target == path:
            found = mount
    return found


def _parse(line: bytes) -> Mount:
    left, _, right = line.partition(b" - ")
    fields, more = left.split(b" "), right.rstrip(b"\n").split(b" ")
    major, minor = fields[2].split(b":")
    return Mount(
        int(fields[0]),
        os.makedev(int(major), int(minor)),
        _unescape(fields[4]),
        os.fsdecode(more[0]),
        _unescape(more[-1]),
        _unescape(more[1]),
        more[-1],
    )


def _unescape(field: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes((int(match[1], 8),)), field))
