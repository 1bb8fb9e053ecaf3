"""Live mounts of an upper directory that this process cannot see.

A container engine mounts in a mount namespace of its own, and fuse-overlayfs takes no lock and shows no options in
mountinfo. Both are found in /proc, as far as its permissions let us look: kernel overlays in the mountinfo of every
mount namespace, other programs by an `upperdir=` on their command line. Paths are resolved in the root of the process
that names them, and compared by device and inode.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from fuseunion.mounting.options import split_words, unescape


def writer_of(upper_fd: int) -> str | None:
    """Who else has a live mount that writes to a directory, for a message; None where nobody is known to."""
    wanted = os.fstat(upper_fd)
    seen = set()
    for pid in (entry for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid()):
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            candidates = [(path, f"process {pid}") for path in _named_by_program(pid)]
            if namespace not in seen:
                seen.add(namespace)
                candidates += [(path, "a kernel overlay mount") for path in _named_by_mounts(pid)]
        except OSError:
            continue  # the process ended, or is not ours to look at
        for path, who in candidates:
            try:
                st = os.stat(f"/proc/{pid}/root/{path}")
            except OSError:
                continue  # gone, or covered by another mount there
            if (st.st_dev, st.st_ino) == (wanted.st_dev, wanted.st_ino):
                return who
    return None


def _named_by_program(pid: str) -> Iterator[str]:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        arguments = os.fsdecode(file.read()).split("\0")
    for argument in arguments:
        if "upperdir=" in argument:
            for name, value in split_words(argument.removeprefix("-o")):
                if name == "upperdir" and value and value.startswith("/"):
                    yield unescape(value)


def _named_by_mounts(pid: str) -> Iterator[str]:
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        lines = [line.split(b" - ", 1)[1].split() for line in file if b" - overlay " in line]
    for *_, options in lines:
        for option in options.split(b","):
            if option.startswith(b"upperdir=/"):
                # Separators in a path are octal numbers (fs/overlayfs/super.c, seq_show_option).
                path = re.sub(rb"\\([0-7]{3})", lambda match: bytes((int(match[1], 8),)), option[9:])
                yield os.fsdecode(path)
