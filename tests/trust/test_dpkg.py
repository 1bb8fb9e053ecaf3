"""A database of dpkg(1), with what it installed, in a mount and in a plain directory beside it.

The lower holds a root with two packages; in the mount one is upgraded, one purged, and others come.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import tree
from tests.support.arena import Arena

_CONTROL = "Package: {}\nVersion: {}\nArchitecture: all\nMaintainer: Test <test@example.org>\nDescription: a test\n"


def _output(*command: str | Path) -> str:
    environment = {**os.environ, "LC_ALL": "C", "HOME": "/nonexistent", "SOURCE_DATE_EPOCH": "1000000000"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def _dpkg(root: Path, *arguments: str | Path) -> str:
    """Who is not root keeps the owner; no package has a script, so that no command runs in a chroot."""
    forced = ("--force-not-root", "--force-bad-path", "--force-confold", "--force-script-chrootless")
    return _output("dpkg", f"--root={root}", "--log=/dev/null", *forced, *arguments)


def _package(arena: Arena, name: str, version: str, *files: str) -> Path:
    """A package with a program, a link to it, a configuration file, two names of one file, and what is named."""
    top = arena.directory(f"{name}-{version}")
    (top / "DEBIAN").mkdir()
    (top / "DEBIAN/control").write_text(_CONTROL.format(name, version))
    (top / "DEBIAN/conffiles").write_text(f"/etc/{name}.conf\n")
    for path in (f"usr/bin/{name}", f"etc/{name}.conf", f"usr/lib/{name}/one", *files):
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(f"{path} of {name} {version}\n" * 50)
    (top / f"usr/bin/{name}").chmod(0o755)
    (top / f"usr/bin/{name}-link").symlink_to(name)
    os.link(top / f"usr/lib/{name}/one", top / f"usr/lib/{name}/two")
    made = arena.root / f"{name}_{version}.deb"
    _output("dpkg-deb", "--root-owner-group", "-Zgzip", "--build", top, made)
    return made


def _new_root(path: Path) -> Path:
    for name in ("info", "updates", "triggers"):
        (path / "var/lib/dpkg" / name).mkdir(parents=True)
    (path / "var/lib/dpkg/status").touch()
    return path


@pytest.mark.actors("root", "user")
def test_packages_come_and_go(arena: Arena) -> None:
    old, gone = _package(arena, "alpha", "1", "usr/share/alpha/old/data"), _package(arena, "beta", "1")
    new, more = _package(arena, "alpha", "2", "usr/share/alpha/new/data"), _package(arena, "gamma", "1")
    lower = _new_root(arena.directory("lower"))
    _dpkg(lower, "--install", old, gone)
    plain = arena.root / "plain"
    _output("cp", "-a", lower, plain)
    arena.guard(lower)
    since = time.time_ns() - 10**9

    def work(root: Path) -> list[str]:
        (root / "etc/alpha.conf").write_text("changed by hand\n")
        _dpkg(root, "--unpack", new, more)
        _dpkg(root, "--configure", "--pending")
        _dpkg(root, "--remove", "beta")
        said = [_dpkg(root, "--audit"), _dpkg(root, "--verify")]
        _dpkg(root, "--purge", "beta")
        return [*said, *_state(root)]

    with arena.mount(lower) as mount:
        got, expected = work(mount.merged), work(plain)
        assert got == expected and "alpha 2 install ok installed" in got[-1] and "beta" not in got[-1], got
        fields = (*tree.SEEN, "nlink")
        assert not tree.differences(tree.snapshot(plain), tree.snapshot(mount.merged), fields, since=since)
    with arena.mount(lower) as mount:
        assert _state(mount.merged) == expected[2:]


def _state(root: Path) -> list[str]:
    """What the database says of all packages and their files."""
    every = "${Package} ${Version} ${Status}\n"
    asked = ("dpkg-query", f"--admindir={root}/var/lib/dpkg")
    return [_dpkg(root, "--verify"), _output(*asked, "--listfiles", "alpha"), _output(*asked, "-W", "-f", every)]
