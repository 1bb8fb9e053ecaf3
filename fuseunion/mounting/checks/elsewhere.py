"""Live mounts of an upper directory that this process cannot see.

A container engine mounts in a mount namespace of its own, and fuse-overlayfs takes no lock and shows no options in
mountinfo. Both are found in /proc, as far as its permissions let us look: kernel overlays in the mountinfo of every
mount namespace, other programs by an `upperdir=` on their command line. Paths are resolved in the root of the process
that names them, and compared by device and inode.

Anybody can start a process with any arguments, and mount anything in a user namespace. So a process counts only when it
acts for somebody who may write to the directory, and a mount also in the first user namespace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from fuseunion.linux import mountinfo, namespaces
from fuseunion.linux.proc import processes
from fuseunion.mounting.options.grammar import split_words, unescape


def writer_of(upper_fd: int) -> str | None:
    """Who else has a live mount that writes to a directory, for a message; None where nobody is known to."""
    wanted = os.fstat(upper_fd)
    seen = set()
    for pid in processes.process_ids():
        if pid == os.getpid():
            continue
        try:
            namespace = processes.mount_namespace(pid)
            counts = processes.may_write_as(pid, wanted.st_uid)
            candidates = [(path, f"process {pid}") for path in _named_by_program(pid)] if counts else []
            if namespace not in seen and (counts or namespaces.maps_every_id("uid", pid)):
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


def _named_by_program(pid: int) -> Iterator[str]:
    for argument in processes.command_line(pid):
        if "upperdir=" in argument:
            for name, value in split_words(argument.removeprefix("-o")):
                if name == "upperdir" and value and value.startswith("/"):
                    yield unescape(value)


def _named_by_mounts(pid: int) -> Iterator[str]:
    for mount in mountinfo.mounts(pid):
        path = mount.option("upperdir") if mount.fstype == "overlay" else None
        if path and path.startswith("/"):
            yield unescape(path)
