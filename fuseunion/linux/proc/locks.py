"""Who holds a lock on something, from what the kernel says of each open descriptor (proc(5), /proc/PID/fdinfo).

/proc/locks names the process that took a lock, which may have ended long ago: the lock belongs to the open file, and
passes over a fork. The descriptors of a process can be looked at by its user and by root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from fuseunion.linux.proc import processes


def holders(st: os.stat_result, kind: str = "FLOCK") -> list[int]:
    """The processes that hold a lock on the file with this stat result, as far as this user may see them.

    Args:
        st: of the file.
        kind: FLOCK for flock(2), OFDLCK for locks of an open file (fcntl(2), F_OFD_SETLK).
    """
    found = []
    for pid in processes.process_ids():
        try:
            if any(os.path.samestat(os.stat(path), st) for path in _locked(pid, st.st_ino, kind)):
                found.append(pid)
        except OSError:
            continue  # ended meanwhile, or another user's
    return found


def _locked(pid: int, ino: int, kind: str) -> Iterator[str]:
    """The descriptors with a lock of a process, of files with this inode number: no other is waited for."""
    wanted = f":{ino} "
    for fd in os.listdir(f"/proc/{pid}/fdinfo"):
        try:
            with open(f"/proc/{pid}/fdinfo/{fd}", errors="replace") as info:
                locked = any(line.startswith("lock:") and f" {kind} " in line and wanted in line for line in info)
        except OSError:
            continue  # closed meanwhile
        if locked:
            yield f"/proc/{pid}/fd/{fd}"
