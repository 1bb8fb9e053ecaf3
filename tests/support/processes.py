"""Finding the processes that a test started, however far they detached themselves.

A daemon leaves its session, its working directory and its parent, but keeps its environment: every command of a test
carries `FUSEUNION_TEST=<token>`, and every process that still has the token in /proc/PID/environ belongs to the test.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from pathlib import Path

TOKEN_VARIABLE = "FUSEUNION_TEST"


def with_token(token: str) -> list[int]:
    """Process ids whose environment holds the token; zombies are left out (they hold nothing any more)."""
    wanted = f"{TOKEN_VARIABLE}={token}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        # The process may end while it is looked at, or belong to somebody else.
        with contextlib.suppress(OSError):
            if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                found.append(int(entry))
    return found


def command_line(pid: int) -> str:
    """The command line of a process, for messages; empty when it has gone."""
    with contextlib.suppress(OSError):
        return Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def descriptors(pid: int) -> dict[int, str]:
    """The open descriptors of a process and what each refers to."""
    found = {}
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):
        try:
            found[int(name)] = os.readlink(f"{directory}/{name}")
        except FileNotFoundError:
            continue  # closed between the listing and the look
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            found[int(name)] = "(deeper than PATH_MAX)"
    return found


def holds(pid: int, path: str) -> bool:
    """Whether a process has a file open; False when it has ended."""
    # Not `descriptors`: the process is one that ends while it is looked at.
    # EACCES: it is ending, and its memory has gone already (proc(5), ptrace access mode check).
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        return path in descriptors(pid).values()
    return False


def is_path_only(pid: int, fd: int) -> bool:
    """Whether a descriptor was opened with O_PATH: a place in the tree, not an open file."""
    for line in Path("/proc", str(pid), "fdinfo", str(fd)).read_text().splitlines():
        if line.startswith("flags:"):
            return bool(int(line.split()[1], 8) & os.O_PATH)
    raise AssertionError(f"no flags in fdinfo of descriptor {fd} of {pid}")


def resident_kib(pid: int) -> int:
    """Resident memory of a process in KiB."""
    for line in Path("/proc", str(pid), "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError(f"process {pid} has no resident memory: it has ended")


def kill_all(token: str) -> list[int]:
    """SIGKILL for every process of a test; returns whom it met."""
    victims = with_token(token)
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return victims
