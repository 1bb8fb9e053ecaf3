"""`/dev/fd/N` as the target: the caller has mounted FUSE itself and hands over the descriptor (Apptainer, setuid mode).

The caller holds /dev/fuse on descriptor N, has called mount(2) with `fd=N`, and does not wait. The mount ends when the
caller unmounts it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import libc
from tests.support.arena import Arena
from tests.support.caller import WRITE_LIMIT, Caller
from tests.support.layers import File

pytestmark = pytest.mark.actors("root", "userns")

MS_NOSUID, MS_NODEV = 2, 4


def mount_fuse(target: Path) -> int:
    """Mount FUSE on `target` and return the descriptor to serve it on."""
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={descriptor},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
    libc.mount("fuse-overlayfs", str(target), "fuse", MS_NOSUID | MS_NODEV, data)
    return descriptor


@pytest.mark.parametrize("number", [3, 4])
def test_serves_the_descriptor(caller: Caller, arena: Arena, number: int) -> None:
    lower, merged = arena.lower({"file": File(b"x")}), arena.directory("merged")
    upper, work = arena.directory("upper"), arena.directory("work")
    descriptor = mount_fuse(merged)
    options = f"lowerdir={lower},upperdir={upper},workdir={work},noacl"
    shell = f'exec "$0" -f -o "$1" /dev/fd/{number} {number}<&{descriptor} {descriptor}<&-'
    with subprocess.Popen(
        ["bash", "-c", shell, caller.program, options],
        env=arena.place.environment(),
        pass_fds=(descriptor,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        os.close(descriptor)
        assert (merged / "file").read_text() == "x"
        (merged / "file").write_text("y")
        libc.umount(str(merged))
        output, _ = process.communicate(timeout=WRITE_LIMIT)
        assert (process.returncode, output) == (0, "")
    assert (upper / "file").read_text() == "y"
