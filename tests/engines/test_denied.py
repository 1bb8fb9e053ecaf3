"""The actor `denied` is what it says: whatever is shown to work for it works without any privilege."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import libc
from tests.support.arena import Arena

pytestmark = pytest.mark.actors("denied")


def test_no_fuse(arena: Arena) -> None:
    """The device cannot be opened, and fusermount3 gains nothing from its set-user-id bit."""
    with pytest.raises(PermissionError):
        os.open("/dev/fuse", os.O_RDWR)
    done = subprocess.run(["fusermount3", str(arena.directory("m"))], capture_output=True, text=True)
    assert done.returncode != 0
    assert "NoNewPrivs:\t1" in Path("/proc/self/status").read_text()


def test_no_namespaces_and_no_mounts(arena: Arena) -> None:
    """Neither a user namespace nor a mount can be made, here or by a program that is started."""
    place = arena.directory("m")
    for flags in (libc.CLONE_NEWUSER, libc.CLONE_NEWNS, libc.CLONE_NEWUSER | libc.CLONE_NEWNS):
        with pytest.raises(OSError):
            libc.unshare(flags)
    with pytest.raises(PermissionError):
        libc.mount("tmpfs", str(place), "tmpfs")
    for command in (
        ["unshare", "--user", "true"],
        ["unshare", "--mount", "true"],
        ["mount", "-t", "tmpfs", "x", place],
    ):
        assert subprocess.run(command, capture_output=True).returncode != 0, command


def test_no_capabilities(arena: Arena) -> None:
    """Nothing is left in any set that counts."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapInh"], 16) == 0
    assert os.geteuid() != 0
