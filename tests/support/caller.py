"""Calling a mount program the way container engines call it, and ending the mount the way they end it.

containers/storage (drivers/overlay/overlay.go, pkg/mount): stdin and stdout are /dev/null, stderr is a pipe that is
read to its end, the working directory is the driver's home, more descriptors may be open by accident. The caller goes
on when the program has exited *and* the last holder of the pipe is gone, so a daemon that keeps stderr stops it.
Unmounting is `fusermount3 -u`, then umount2(MNT_DETACH); nobody signals the daemon.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import libc, processes
from tests.support.arena import Arena
from tests.support.mountinfo import mount_at
from tests.support.product import make_launcher, substitute
from tests.support.waiting import wait_until

CALL_LIMIT = 20.0
EXIT_LIMIT = 1.0
"""Seconds in which a daemon must be gone after the unmount (Apptainer sends SIGTERM after one second)."""

WRITE_LIMIT = 30.0
"""Seconds that it may then go on to write to a disk that others use too, unless the mount was volatile or read-only."""


@dataclass(frozen=True, slots=True)
class Call:
    """How a call of the mount program ended, seen by the caller."""

    exit_code: int
    stderr: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Caller:
    """A container engine, as far as mounting goes."""

    arena: Arena
    program: Path

    def call(self, *arguments: str | Path, cwd: Path | str = "/") -> Call:
        """Run the program to its exit and to the end of its stderr."""
        read_end, write_end = os.pipe()  # a descriptor that the caller left open
        begin = time.monotonic()
        try:
            done = subprocess.run(
                [self.program, *map(str, arguments)],
                cwd=cwd,
                env={**self.arena.place.environment(), "_CONTAINERS_USERNS_CONFIGURED": "done", "PWD": str(cwd)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(write_end,),
                text=True,
                timeout=CALL_LIMIT,
            )
        finally:
            os.close(write_end)
        seconds = time.monotonic() - begin
        # At its end (readable) as soon as nobody else holds the other side.
        ended, _, _ = select.select([read_end], [], [], EXIT_LIMIT)
        os.close(read_end)
        assert ended or not is_product(), "the daemon keeps a descriptor of its caller"
        return Call(done.returncode, done.stderr, seconds)

    @contextlib.contextmanager
    def mounted(
        self, options: str, target: Path, cwd: Path | str = "/", *, before: Sequence[str] = ()
    ) -> Iterator[Path]:
        """A mount by `PROGRAM -o OPTIONS TARGET`: silent, live at the exit, and gone at once after the unmount."""
        others = set(processes.with_token(self.arena.place.token))
        call = self.call(*before, "-o", options, target, cwd=cwd)
        assert (call.exit_code, call.stderr) == (0, ""), f"exit code {call.exit_code}: {call.stderr}"
        assert mount_at(target) is not None, "exit code 0, but nothing is mounted"
        try:
            yield target
        except BaseException:
            libc.umount(str(target), libc.MNT_DETACH)
            raise
        self.unmount(target)
        self.await_exit(others)

    def unmount(self, target: Path) -> None:
        """What containers/storage does; the mount must be gone then."""
        done = subprocess.run(["fusermount3", "-u", target], capture_output=True, text=True)
        assert done.returncode == 0, f"fusermount3 -u: {done.stderr}"
        assert mount_at(target) is None

    def await_exit(self, others: set[int]) -> None:
        """The daemon ends by itself; nothing of the mount is held any more while it writes out."""

        def left() -> list[int]:
            return [pid for pid in processes.with_token(self.arena.place.token) if pid not in others]

        def serving() -> list[int]:
            return [pid for pid in left() if processes.holds(pid, "/dev/fuse")]

        wait_until(lambda: not serving(), "the daemon to see that it is unmounted", EXIT_LIMIT)
        wait_until(lambda: not left(), "the daemon to end after the unmount", WRITE_LIMIT)


def make_caller(arena: Arena) -> Caller:
    """A caller of the program under test."""
    return Caller(arena, make_launcher(arena.root / "fuseunion", arena.place.interpreter))


def is_product() -> bool:
    """Whether the program under test is fuseunion itself, and not a stand-in."""
    return substitute() is None
