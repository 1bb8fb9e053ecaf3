"""What `make dist` left in dist/, and a machine to try it on: Debian 11 without Python, compiler and libfuse.

The tests need root, and are not part of `make test`: `make test-dist` builds first.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import fuseunion
from tests.support.interpreter import PROJECT

NAME = f"fuseunion-{fuseunion.__version__}-x86_64"
DIST = PROJECT / "dist"
MACHINE = PROJECT / "build/debian11.tar.gz"
"""Debian 11 as debootstrap makes it: glibc 2.31, and little else (packaging/dist)."""

BUILT = PROJECT / "build/debian11"
"""The same with a compiler and what was built there, fusermount3 among it."""

PIVOT = """
set -eu
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount -t tmpfs -o mode=755 dev dev
for device in null zero urandom fuse; do touch dev/$device; mount --bind /dev/$device dev/$device; done
mkdir -p old
pivot_root . old
umount -l old
cd /home/someone
exec setpriv --reuid=1234 --regid=1234 --clear-groups env -i HOME=/home/someone PATH=/usr/bin:/bin:/usr/sbin:/sbin \
    LC_ALL=C sh -euc "$2"
"""
"""A user namespace cannot be made below chroot(2), so the machine becomes the root of a mount namespace."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The other machine, and an ordinary user on it with the bundle in their home directory."""

    root: Path

    @property
    def home(self) -> Path:
        """Of the user."""
        return self.root / "home/someone"

    def run(self, script: str) -> str:
        """Run a script as the user; returns what it printed on both outputs."""
        isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        done = subprocess.run(
            [*isolated, "sh", "-c", PIVOT, "pivot", str(self.root), script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}"
        return done.stdout


@pytest.fixture(scope="session")
def tarball() -> Path:
    """The self-contained directory, packed."""
    path = DIST / f"{NAME}.tar.gz"
    assert path.exists(), f"{path} is missing: make dist"
    return path


@pytest.fixture(scope="session")
def unpacked(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The self-contained directory on this machine."""
    place = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-xzf", tarball, "-C", place], check=True)
    return place / NAME


@pytest.fixture(scope="session")
def machine(tarball: Path, scratch: Path) -> Iterator[Machine]:
    """The other machine; the user has unpacked the tarball."""
    root = scratch / "machine"
    root.mkdir()
    subprocess.run(["tar", "-xzf", MACHINE, "-C", root], check=True)
    # As an installer leaves it: fusermount3 asks for the name of the user, and for the mounts.
    with (root / "etc/passwd").open("a") as passwd:
        passwd.write("someone:x:1234:1234::/home/someone:/bin/sh\n")
    (root / "etc/mtab").symlink_to("/proc/self/mounts")
    found = Machine(root)
    found.home.mkdir(parents=True)
    shutil.copy(tarball, found.home)
    os.chown(found.home, 1234, 1234)
    found.run(f"tar -xzf {shlex.quote(tarball.name)}; mkdir lower; echo text >lower/file; mkdir merged")
    yield found
    shutil.rmtree(root)
