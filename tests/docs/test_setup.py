"""`scripts/setup`, which `make demo` begins with, for somebody who has neither root nor the packages."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support.interpreter import PROJECT
from tests.support.user import User


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _setup(checkout: Path, user: User, programs: dict[str, str]) -> list[str]:
    """What it says to an ordinary user whose PATH begins with these programs."""
    place = checkout / "bin"
    place.mkdir(parents=True)
    for name, script in {"sudo": "exit 1", **programs}.items():
        _program(place / name, script)
    (checkout / "scripts").mkdir()
    setup = checkout / "scripts/setup"
    setup.write_bytes((PROJECT / "scripts/setup").read_bytes())
    setup.chmod(0o755)
    as_user = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups"]
    done = subprocess.run(
        [*(as_user if os.geteuid() == 0 else []), setup],
        env={"PATH": f"{place}:/usr/bin:/bin", "HOME": "/"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert not (checkout / ".venv").exists()
    return (done.stdout + done.stderr).splitlines()


def test_all_that_is_missing_is_in_one_line(scratch: Path, user: User) -> None:
    """With what root has to run."""
    (line,) = _setup(scratch / "checkout", user, {"dpkg-query": "echo not-installed"})
    assert line.startswith("setup: these packages are missing and cannot be installed from here; run as root: apt-get")
    for package in ("fuse3", "libfuse3-dev", "pkg-config", "gcc", "libc6-dev", "-venv", "-dev"):
        assert package in line
