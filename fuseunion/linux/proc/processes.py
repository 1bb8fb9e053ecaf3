"""What /proc says of processes, and waiting until one ends (proc(5), pidfd_open(2)).

A process may end while it is looked at, and others' processes may not be looked at: both are an OSError.
"""

import os
import select
from collections.abc import Iterator

from fuseunion.linux import namespaces


def process_ids() -> list[int]:
    """Every process of this pid namespace."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def mount_namespace(process: int | str = "self") -> str:
    """What tells the mount namespace of a process from others.

    Raises:
        OSError: see above.
    """
    return os.readlink(f"/proc/{process}/ns/mnt")


def command_line(pid: int) -> list[str]:
    """The arguments that a process was started with.

    Raises:
        OSError: see above.
    """
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return os.fsdecode(file.read()).split("\0")


def name(pid: int) -> str:
    """The short name of a process's program; "?" where it cannot be had."""
    try:
        with open(f"/proc/{pid}/comm", errors="replace") as comm:
            return comm.read().strip()
    except OSError:
        return "?"


def may_write_as(pid: int, owner: int) -> bool:
    """Whether a process acts for root, for this user, or for the owner of something: who else holds it cannot write it.

    What a process says of itself (its arguments, its name) anybody can forge; its ids are the kernel's word. All of
    them count, since a set-user-ID program that another user started keeps that user as its real id. The root of a user
    namespace acts for every user of its map.

    Raises:
        OSError: see above.
    """
    with open(f"/proc/{pid}/status", errors="replace") as status:
        ids = next(line.split()[1:] for line in status if line.startswith("Uid:"))
    if {int(uid) for uid in ids} <= {0, os.geteuid(), owner}:
        return True
    if namespaces.maps_every_id("uid", pid) or (
        os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")
    ):
        return False
    numbers = [int(number) for number in namespaces.id_map("uid", pid)]
    return any(first <= owner < first + count for first, count in zip(numbers[1::3], numbers[2::3], strict=True))


def mount_namespaces() -> Iterator[int]:
    """A process of each mount namespace but this one in which this user has processes; for root, whoever has."""
    uid, seen = os.geteuid(), {mount_namespace()}
    for pid in process_ids():
        try:
            if uid in (0, os.stat(f"/proc/{pid}").st_uid) and (namespace := mount_namespace(pid)) not in seen:
                seen.add(namespace)
                yield pid
        except OSError:
            continue  # ended meanwhile, or not ours to look at


def opened(pid: int) -> Iterator[tuple[str, str]]:
    """The descriptor and the path of each file that a process has open, as far as it can be told.

    Raises:
        OSError: see above.
    """
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield descriptor, os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except OSError:
            continue  # closed meanwhile, or a path too long for /proc (ENAMETOOLONG)


def descriptors_of(pid: int, path: str) -> list[dict[str, str]]:
    """What the kernel says of each descriptor of a file that a process has open (/proc/PID/fdinfo), by field.

    Returns:
        Nothing also for a process that may not be looked at.
    """
    found = []
    try:
        for number, opened_path in opened(pid):
            if opened_path == path:
                with open(f"/proc/{pid}/fdinfo/{number}", errors="replace") as info:
                    fields = (line.partition(":") for line in info)
                    found.append({name: value.strip() for name, _, value in fields})
    except OSError:
        pass  # not ours to look at, or ended meanwhile
    return found


_CONNECTION = "fuse_connection"
"""In fdinfo of /dev/fuse: the dev_t of the mount as the kernel has it (fs/fuse/dev.c fuse_dev_show_fdinfo)."""


def served_mounts(pid: int) -> list[int]:
    """The device numbers (st_dev) of the FUSE mounts that a process serves.

    Returns:
        Nothing also where the kernel does not tell (before Linux 6.18), and for a process that may not be looked at.
    """
    found = [fields[_CONNECTION] for fields in descriptors_of(pid, "/dev/fuse") if _CONNECTION in fields]
    return [os.makedev(int(number) >> 20, int(number) & 0xFFFFF) for number in found if number.isdigit()]


def own_descriptors() -> frozenset[int]:
    """The open descriptors of this process beyond stdin, stdout and stderr; none without /proc."""
    try:
        listed = [int(number) for number in os.listdir("/proc/self/fd")]
    except OSError:
        return frozenset()
    return frozenset(fd for fd in listed if fd > 2 and _is_open(fd))


def _is_open(fd: int) -> bool:
    """False for the descriptor of the listing itself, whose number will be used again."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def wait_for_end(pidfd: int, seconds: float) -> bool:
    """Wait for a process to end.

    Args:
        pidfd: a descriptor of it (pidfd_open(2)).
        seconds: how long at most.
    Returns:
        Whether it has ended.
    """
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
