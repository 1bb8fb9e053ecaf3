"""A database of rpm(8), with what it installed, in a mount and in a plain directory beside it."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import tree
from tests.support.arena import Arena

# rpm changes its root to the directory, which an ordinary user may not.
pytestmark = [pytest.mark.conformance, pytest.mark.actors("root", "userns"), pytest.mark.limit(180)]

_SPEC = """
Name: {name}
Version: {version}
Release: 1
Summary: a test
License: none
BuildArch: noarch
%description
A test.
%install
mkdir -p %buildroot/usr/bin %buildroot/usr/lib/{name} %buildroot/etc
echo program {version} >%buildroot/usr/bin/{name}
ln -s {name} %buildroot/usr/bin/{name}-link
echo data {version} >%buildroot/usr/lib/{name}/one
ln %buildroot/usr/lib/{name}/one %buildroot/usr/lib/{name}/two
echo data >%buildroot/usr/lib/{name}/only-{version}
echo setting >%buildroot/etc/{name}.conf
%files
%attr(4755,root,root) /usr/bin/{name}
/usr/bin/{name}-link
/usr/lib/{name}
%config(noreplace) /etc/{name}.conf
"""

_DATABASE = "/var/lib/rpm"
_VARYING = f"{_DATABASE}/".encode()[1:]
"""The files of the database hold times of installation and numbers of transactions; what they say is asked for."""


def _output(command: list[str | Path], codes: tuple[int, ...] = (0,)) -> str:
    environment = {**os.environ, "LC_ALL": "C", "HOME": "/nonexistent"}
    done = subprocess.run(
        list(map(str, command)), env=environment, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode in codes, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def _rpm(root: Path, *arguments: str | Path, codes: tuple[int, ...] = (0,)) -> str:
    return _output(["rpm", f"--root={root}", f"--dbpath={_DATABASE}", *arguments], codes)


def _package(arena: Arena, name: str, version: str) -> Path:
    top = arena.directory(f"build-{name}-{version}")
    spec = top / "spec"
    spec.write_text(_SPEC.format(name=name, version=version))
    _output(["rpmbuild", "--quiet", "-bb", "--define", f"_topdir {top}", spec])
    (made,) = top.rglob("*.rpm")
    return made


def test_packages_come_and_go(arena: Arena) -> None:
    old, gone = _package(arena, "alpha", "1"), _package(arena, "beta", "1")
    new, more = _package(arena, "alpha", "2"), _package(arena, "gamma", "1")
    lower = arena.directory("lower")
    _rpm(lower, "--initdb")
    _rpm(lower, "--nodeps", "--install", old, gone)
    plain = arena.root / "plain"
    _output(["cp", "-a", lower, plain])
    arena.guard(lower)
    since = time.time_ns() - 10**9

    def work(root: Path) -> list[str]:
        (root / "etc/alpha.conf").write_text("changed by hand\n")
        os.utime(root / "etc/alpha.conf", (10**9, 10**9))  # in another second than it was packaged (rpm --verify)
        _rpm(root, "--nodeps", "--upgrade", new, more)
        _rpm(root, "--nodeps", "--erase", "beta")
        return _state(root)

    with arena.mount(lower) as mount:
        got, expected = work(mount.merged), work(plain)
        assert got == expected and got[0].split() == ["alpha-2-1.noarch", "gamma-1-1.noarch"], got
        fields = (*tree.SEEN, "nlink")
        assert not tree.differences(_shown(plain), _shown(mount.merged), fields, since=since)
    with arena.mount(lower) as mount:
        assert _state(mount.merged) == expected
        _rpm(mount.merged, "--rebuilddb")
        assert _state(mount.merged) == expected


def _state(root: Path) -> list[str]:
    """What the database says of all packages and their files; the one that was changed makes --verify fail."""
    _output(["rpmdb", f"--root={root}", f"--dbpath={_DATABASE}", "--verifydb"])
    return [
        "\n".join(sorted(_rpm(root, "--query", "--all").split())),
        _rpm(root, "--query", "--list", "alpha"),
        _rpm(root, "--verify", "--all", codes=(1,)),
    ]


def _shown(root: Path) -> tree.Tree:
    return {path: entry for path, entry in tree.snapshot(root).items() if not path.startswith(_VARYING)}
