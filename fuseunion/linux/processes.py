"""What /proc says of processes, and waiting until one ends (proc(5), pidfd_open(2)).

A process may end while it is looked at, and others' processes may not be looked at: both are an OSError.
"""

import os
import select
from collections.abc import Iterator


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


def opened(pid: int) -> Iterator[str]:
    """The path of each file that a process has open, as far as it can be told.

    Raises:
        OSError: see above.
    """
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except OSError:
            continue  # closed meanwhile, or a path too long for /proc (ENAMETOOLONG)


def holds(pid: int, path: str) -> bool:
    """Whether a process has a file open; False also for one that may not be looked at."""
    try:
        return path in opened(pid)
    except OSError:
        return False


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
