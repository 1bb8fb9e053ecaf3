"""Who keeps a mount busy: processes with an open file, a working or root directory or a mapping on it.

As fuser(1) does it, by looking through /proc; an ordinary user sees only the own processes. No filesystem is asked for
anything: what somebody else has open may lie on one that does not answer.
"""

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fuseunion.linux import mountinfo, syscalls
from fuseunion.linux.proc import processes


class Holder(NamedTuple):
    """A process and one reason why it keeps the mount busy."""

    pid: int
    command: str
    reason: str

    def __str__(self) -> str:
        return f"{self.pid} {self.command} ({self.reason})"


def holders(device: int) -> list[Holder]:
    """The processes that use the filesystem with this st_dev."""
    return _holders(lambda pid: _reasons(f"/proc/{pid}", device))


def holders_beneath(directory: str) -> list[Holder]:
    """The processes that use a directory, given by its absolute path, or anything in it."""
    return _holders(lambda pid: _reasons_beneath(f"/proc/{pid}", directory))


def elsewhere(device: int) -> list[Holder]:
    """One process of each other mount namespace that still has the filesystem mounted.

    A namespace made with private propagation, as unshare(1) does, keeps its copy of a mount that is unmounted here.
    """
    seen = {processes.mount_namespace()}

    def reasons(pid: int) -> Iterator[str]:
        namespace = processes.mount_namespace(pid)
        if namespace in seen:
            return
        seen.add(namespace)
        if any(mount.device == device for mount in mountinfo.mounts(pid)):
            yield "in another mount namespace"

    return _holders(reasons)


def _holders(reasons: Callable[[int], Iterator[str]]) -> list[Holder]:
    found = []
    for pid in processes.process_ids():
        try:
            reason = next(reasons(pid), None)
        except OSError:
            continue  # ended meanwhile, or another user's
        if reason:
            found.append(Holder(pid, processes.name(pid), reason))
    return found


def _reasons(process: str, device: int) -> Iterator[str]:
    for link, reason in (("cwd", "its working directory"), ("root", "its root directory")):
        if _on(f"{process}/{link}", device):
            yield reason
    for fd in os.listdir(f"{process}/fd"):
        if _on(f"{process}/fd/{fd}", device):
            yield f"has {_name(f'{process}/fd/{fd}')} open"
    number = f"{os.major(device):02x}:{os.minor(device):02x}"
    with open(f"{process}/maps", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            if fields[3] == number:
                yield f"has {fields[5].strip() if len(fields) > 5 else 'a file'} mapped"


def _reasons_beneath(process: str, directory: str) -> Iterator[str]:
    links = [(f"{process}/cwd", "its working directory"), (f"{process}/root", "its root directory")]
    links += [(f"{process}/fd/{fd}", "") for fd in os.listdir(f"{process}/fd")]
    for link, reason in links:
        path = _name(link)
        if path == directory or path.startswith(f"{directory}/"):
            yield reason or f"has {path} open"
    with open(f"{process}/maps", errors="surrogateescape") as maps:
        for line in maps:
            if f" {directory}/" in line:
                yield f"has {line.split(maxsplit=5)[5].strip()} mapped"


def _on(path: str, device: int) -> bool:
    try:
        return syscalls.device(syscalls.AT_FDCWD, path.encode()) == device
    except OSError:
        return False


def _name(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return "a file"
