"""`fuseunion exec` in a Debian system, as an ordinary user with and without subordinate ids."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.exec.stage import SINGLE
from tests.support.debian import Debian
from tests.support.interpreter import Interpreter
from tests.support.product import make_launcher
from tests.support.user import User

pytestmark = pytest.mark.rootfs

INSTALL = """
echo 'deb [trusted=yes] file:/debs ./' >/etc/apt/sources.list
apt-get -q update
export DEBIAN_FRONTEND=noninteractive
apt-get install -q -y --no-install-recommends gcc libc6-dev procps sudo cron openssh-client
"""

USE = """
useradd --create-home --uid 1234 joe
touch /root/file; chown joe:joe /root/file
mkdir /root/new; tar -C /root -cpf /root/all.tar file; tar -C /root/new -xpf /root/all.tar
echo 'int main(void) { return 0; }' >/root/program.c
cd /root; cc -o program program.c; ./program
su joe -c true
rm -r /usr/share/doc; mv /usr/share/common-licenses /usr/share/licenses
stat -c %U:%G /root/file /root/new/file /home/joe
"""


@dataclass(frozen=True, slots=True)
class Host:
    """Somebody with a Debian tree."""

    uid: int
    gid: int
    directory: Path
    launcher: Path
    packages: Path

    def run(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        """Run something as this user."""
        return subprocess.run(
            list(map(str, argv)),
            user=self.uid,
            group=self.gid,
            extra_groups=[],
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], "HOME": "/", "SHELL": "/bin/bash"},
            capture_output=True,
            text=True,
            timeout=600,
        )

    def script(self, text: str) -> list[str]:
        """The lines that a script prints in the tree, which succeeds."""
        bind = f"{self.packages}:/debs:ro"
        done = self.run(self.launcher, "exec", "--bind", bind, "tree", "changes", "--", "bash", "-euc", text)
        assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout.splitlines()


@pytest.fixture(scope="module", params=["subordinate", "single"])
def host(
    request: pytest.FixtureRequest, debian: Debian, scratch: Path, user: User, reachable_interpreter: Interpreter
) -> Iterator[Host]:
    """With subordinate ids, and with one id."""
    directory = scratch / f"exec-{request.param}"
    directory.mkdir()
    launcher = make_launcher(scratch / f"exec-{request.param}-launcher", reachable_interpreter)
    uid, gid = (user.uid, user.gid) if request.param == "subordinate" else (SINGLE, SINGLE)
    os.chown(directory, uid, gid)
    host = Host(uid, gid, directory, launcher, debian.packages)
    (directory / "tree").mkdir()
    os.chown(directory / "tree", uid, gid)
    unpack = ["tar", "-C", "tree", "-xpf", debian.base]
    if request.param == "subordinate":
        unpack = ["unshare", "--map-root-user", "--map-auto", *unpack, "--numeric-owner"]
    done = host.run(*unpack)
    assert done.returncode == 0, done.stderr
    yield host
    subprocess.run(["rm", "-rf", "--one-file-system", directory], check=True)


def test_a_system_is_used(host: Host) -> None:
    host.script(INSTALL)
    owners = host.script(USE)
    assert owners == (["root:root"] if host.uid == SINGLE else ["joe:joe"]) * 3
    assert host.script("dpkg --audit; sudo -n true; ls /home; ls /usr/share/doc 2>/dev/null || echo gone") == [
        "joe",
        "gone",
    ]
    left = set(os.listdir(host.directory)) - {"changes", "tree"}
    assert left <= {".changes.fuseunion-work"}, left
    # It holds the index of hard links that were copied up, and nothing else.
    assert all(set(os.listdir(host.directory / name)) <= {"links", "work"} for name in left)
    assert not (host.directory / "tree/home/joe").exists()
