"""A mount that nobody uses takes no processor time, whatever was done before."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.arena import Arena
from tests.support.layers import File
from tests.support.mounts import FuseunionMount
from tests.support.waiting import wait_until

LOOKS = 40


def _time_used(mount: FuseunionMount) -> int:
    """Nanoseconds for which all threads of the daemon have run (Documentation/scheduler/sched-stats.rst)."""
    threads = Path(f"/proc/{mount.daemon}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads)


def test_after_use(arena: Arena) -> None:
    """It looks for the next request only for a while (-o spin)."""
    with arena.mount(arena.lower({f"f{number}": File(b"x" * 5000) for number in range(20)})) as mount:
        for number in range(20):
            path = mount / f"f{number}"
            assert len(path.read_bytes()) == 5000
            path.write_bytes(b"changed")
            with open(mount / f"new{number}", "wb") as file:
                file.write(b"new")
                os.fsync(file.fileno())
        assert len(os.listdir(mount.merged)) == 40
        before, stood = 0, 0

        def stands() -> bool:
            nonlocal before, stood
            now = _time_used(mount)
            before, stood = now, stood + 1 if now == before else 0
            return stood == LOOKS

        wait_until(stands, f"the daemon does nothing between {LOOKS} looks in a row", timeout=5)
