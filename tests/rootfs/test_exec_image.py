"""The life of an overlay image on a cluster: a Debian system in a squashfs, packages of a project in an image.

As root, as a user with subordinate ids, and as one with a single id.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
apt-get install -q -y --no-install-recommends tcc hello libcap2-bin
"""

FILL = """
mkdir -p /data
i=0
while echo "$i" >/data/small.$i && head -c 1000000 /dev/zero >/data/big.$i; do i=$((i + 1)); done
rm /data/big.$i
echo full >&2
"""


@dataclass(frozen=True, slots=True)
class Project:
    """Somebody's directory with base.sqfs in it."""

    uid: int
    gid: int
    directory: Path
    launcher: Path
    packages: Path

    def run(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `fuseunion` with these arguments."""
        return subprocess.run(
            [str(self.launcher), *map(str, argv)],
            user=self.uid,
            group=self.gid,
            extra_groups=[],
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], "HOME": "/", "SHELL": "/bin/bash"},
            capture_output=True,
            text=True,
            timeout=600,
        )

    def succeed(self, *argv: str | Path) -> str:
        """Run it; it has nothing to complain of."""
        done = self.run(*argv)
        assert (done.returncode, done.stderr) == (0, ""), (argv, done.stdout[-3000:], done.stderr[-3000:])
        return done.stdout

    def script(self, text: str, *words: str) -> list[str]:
        """The lines that a script prints in the system, which succeeds and complains of nothing else than itself."""
        done = self.run("exec", "--bind", f"{self.packages}:/debs:ro", *words, "--", "bash", "-euc", text)
        assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
        assert "fuseunion:" not in done.stderr, done.stderr
        return done.stdout.splitlines()

    def info(self, file: str) -> dict[str, Any]:
        """What `image info` says of the filesystem in a file."""
        found: dict[str, Any] = json.loads(self.succeed("image", "info", "--json", file))["filesystems"][-1]
        return found

    def fsck(self, file: str) -> None:
        """The image is as a filesystem has to be that nobody has mounted."""
        done = subprocess.run(["e2fsck", "-fn", str(self.directory / file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def base(debian: Debian, scratch: Path) -> Path:
    """A Debian system in a squashfs image, made by the administrators."""
    file = scratch / "image-base.sqfs"
    with debian.base.open("rb") as archive:
        subprocess.run(["sqfstar", "-quiet", "-no-progress", "-comp", "lz4", str(file)], stdin=archive, check=True)
    return file


@pytest.fixture(scope="module", params=["root", "subordinate", "single"])
def project(
    request: pytest.FixtureRequest,
    debian: Debian,
    base: Path,
    scratch: Path,
    user: User,
    reachable_interpreter: Interpreter,
) -> Iterator[Project]:
    """Whose it is."""
    ids = {"root": (0, 0), "subordinate": (user.uid, user.gid), "single": (SINGLE, SINGLE)}
    directory = scratch / f"image-{request.param}"
    directory.mkdir()
    launcher = make_launcher(scratch / f"image-{request.param}-launcher", reachable_interpreter)
    (directory / "base.sqfs").hardlink_to(base)
    os.chown(directory, *ids[request.param])
    yield Project(*ids[request.param], directory, launcher, debian.packages)
    subprocess.run(["rm", "-rf", "--one-file-system", directory], check=True)


def test_the_life_of_an_overlay(project: Project) -> None:
    project.succeed("image", "create", "--size", "200M", "--sparse", "--create-dir", "work/here", "env.img")

    # Packages, for good.
    project.script(INSTALL, "base.sqfs", "env.img")
    project.fsck("env.img")
    used = ["base.sqfs", "env.img"]
    compile_ = (
        "echo 'int main(void) { return 7; }' >/work/here/p.c; tcc -c -o /work/here/p.o /work/here/p.c; hello -g hi"
    )
    assert project.script(f"{compile_}; dpkg --audit; ls /work/here", *used) == ["hi", "p.c", "p.o"]
    assert project.info("env.img")["last_used_with"][1:] == [str(project.directory / "base.sqfs")]

    # Read-only, in Apptainer's words, by two at once.
    over = ["--overlay", "env.img:ro", "base.sqfs"]
    nested = f"{project.launcher} --version >/dev/null 2>&1 || :; cat /work/here/p.c; echo x >/work/here/new"
    assert project.script(nested, *over) == ["int main(void) { return 7; }"]
    assert project.script("ls /work/here", "--overlay", "env.img", "base.sqfs") == ["p.c", "p.o"]
    assert project.script(
        "ls /work/here; echo x >/forgotten", "--writable-tmpfs", "--overlay", "env.img:ro", "base.sqfs"
    )

    # Full: the program hears of it, and nothing is damaged.
    done = project.run("exec", "base.sqfs", "env.img", "--", "bash", "-c", FILL)
    assert done.returncode == 0 and "No space left on device" in done.stderr, done.stderr
    project.fsck("env.img")
    assert project.info("env.img")["free"] < 21 << 20, "a tenth, which fuse2fs leaves"
    look = "hello -g hi; cat /data/small.3; cmp <(head -c 1000000 /dev/zero) /data/big.3"
    done = project.run("exec", *used, "--", "bash", "-euc", look)
    assert (done.returncode, done.stdout) == (0, "hi\n3\n"), done
    if project.uid != 0:  # the kernel keeps enough for a mount to go on
        assert (
            "is full (No space left on device), so it is mounted read-only; unmount it and give it more" in done.stderr
        )

    # Larger, and on; smaller again, and on.
    project.succeed("image", "resize", "env.img", "+100M")
    project.script("head -c 30000000 /dev/urandom >/data/more; md5sum /data/more >/data/sum; rm /data/big.*", *used)
    done = project.run("image", "resize", "env.img", "20M")
    assert done.returncode == 3 and "cannot be made smaller" in done.stderr, done.stderr
    project.succeed("image", "resize", "env.img", "150M")
    assert project.script("md5sum -c /data/sum; hello -g hi", *used) == ["/data/more: OK", "hi"]
    if project.uid == SINGLE:
        return  # what reaches into an image needs fusermount3, which refuses a user without a name
    assert "is clean" in project.succeed("image", "check", "env.img")

    # To its user and back, and to another place.
    project.succeed("image", "chown", "env.img", "--to", "me")
    assert project.info("env.img")["owner_of_upper"] == [project.uid, project.gid]
    project.succeed("image", "chown", "env.img", "--to", "root")
    assert project.script("md5sum -c /data/sum; dpkg --audit; hello -g hi", *used) == ["/data/more: OK", "hi"]
    project.succeed("image", "clone", "--sparse", "env.img", "other.img")

    # Frozen as one more layer, under a new image; several of them.
    project.script("rm -r /data /usr/share/doc; mkdir /data; echo frozen >/data/only", *used)
    project.succeed("image", "chown", "env.img", "--to", "me")
    project.succeed("image", "unpack", "env.img", "upper")
    project.succeed("image", "squash", "upper", "frozen.sqfs")
    (project.directory / "more").mkdir()
    (project.directory / "more/data").mkdir()
    (project.directory / "more/data/more").write_text("more")
    project.succeed("image", "squash", "more", "more.sqfs")
    project.succeed("image", "create", "--size", "64M", "--fakeroot", "new.img")
    over = [word for name in ("frozen.sqfs", "more.sqfs", "new.img") for word in ("--overlay", name)]
    look = "cat /data/only; ls /data; ls /usr/share/doc 2>/dev/null || echo none; hello -g hi; echo x >/data/new"
    assert project.script(look, *over, "base.sqfs") == ["frozen", "more", "only", "none", "hi"]
    assert project.script("ls /data", *over, "base.sqfs") == ["more", "new", "only"]
    assert project.succeed("image", "ls", "new.img", "upper/data") == "new\n"
    for file in ("env.img", "other.img", "new.img"):
        project.fsck(file)
