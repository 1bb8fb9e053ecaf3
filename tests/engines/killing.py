"""kill -9 at a chosen system call: strace(1) counts the calls of a command and kills it at the Nth."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.arena import Arena

CHANGES = (
    "symlink,symlinkat,mkdir,mkdirat,mknod,mknodat,link,linkat,unlink,unlinkat,rmdir,rename,renameat,renameat2,"
    "mount,umount2,setxattr,removexattr,chmod,fchmod,utimensat,fsync,syncfs,flock,copy_file_range,ftruncate"
)
"""Everything that changes a tree, and the places where something is declared to be done."""


def _command(arena: Arena, strace: list[str], arguments: tuple[str | Path, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["strace", "-f", "-qq", *strace, *arena.place.interpreter.command(*map(str, arguments))],
        env=arena.place.environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def points(arena: Arena, *arguments: str | Path) -> Iterator[tuple[str, int]]:
    """Run a command to its end; then (system call, N) for each kind of call at which it can be killed.

    In the middle of them; under FUSEUNION_STRESS also at the first and at the last.
    """
    log = arena.root / "strace.log"
    done = _command(arena, ["-o", str(log), "-e", f"trace={CHANGES}"], arguments)
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = {}
    for name in re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE):
        counts[name] = counts.get(name, 0) + 1
    for name, count in counts.items():
        numbers = {1, (count + 1) // 2, count} if os.environ.get("FUSEUNION_STRESS") else {(count + 1) // 2}
        yield from ((name, number) for number in sorted(numbers))


def kill_at(arena: Arena, call: str, number: int, *arguments: str | Path) -> None:
    """Run a command that is killed when it makes a system call for the Nth time."""
    inject = f"inject={call}:signal=KILL:when={number}"
    done = _command(arena, ["-o", os.devnull, "-e", f"trace={call}", "-e", inject], arguments)
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), f"not killed: {done.returncode} {done.stderr}"
