"""Mounting and unmounting as they bear on the files: again at once, over the lower itself, with odd paths."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support import processes
from tests.support.arena import Arena
from tests.support.layers import File
from tests.support.mountinfo import mount_at
from tests.support.waiting import wait_until


def test_unmount_and_mount_at_once(arena: Arena) -> None:
    """A mount made right after an unmount of the same path is not lost to the old daemon's end."""
    lower = arena.lower({"f": File(b"x")})
    with arena.mount(lower) as mount:
        for number in range(5):
            (mount / f"new{number}").touch()
            mount.stop()
            mount.start()
            assert (mount / f"new{number}").exists()
        assert len(os.listdir(mount.merged)) == 6


def test_mount_over_the_lower_itself(arena: Arena) -> None:
    """MERGED may be LOWER: the lower shows through its own mount, and is itself again afterwards."""
    lower = arena.lower({"f": File(b"x"), "d/g": File(b"g")})
    with arena.mount(lower, merged=lower.name) as mount:
        assert (lower / "f").read_bytes() == b"x"
        (lower / "f").write_bytes(b"changed")
        (lower / "d/g").unlink()
        mount.stop()
        assert (lower / "f").read_bytes() == b"x"
        mount.start()
        assert (lower / "f").read_bytes() == b"changed"
        assert os.listdir(lower / "d") == []


@pytest.mark.parametrize("name", ["a:b", "a,b", "back\\slash", "sp ace", "ünï", "new\nline", 'quo"te'])
@pytest.mark.actors("root", "user")
def test_odd_paths(arena: Arena, name: str) -> None:
    """Layers and mount points may have any name."""
    lower = arena.lower({"f": File(b"x")}, f"lower {name}")
    with arena.mount(lower, upper=arena.root / f"upper {name}", merged=f"merged {name}") as mount:
        (mount / "f").write_bytes(b"y")
        assert (mount / "f").read_bytes() == b"y"


def test_a_signal_unmounts(arena: Arena) -> None:
    """SIGTERM to the daemon unmounts cleanly."""
    lower = arena.lower({"f": File(b"x")})
    with arena.mount(lower) as mount:
        (mount / "f").write_bytes(b"y")
        subprocess.run(["kill", "-TERM", str(mount.daemon)], check=True)
        wait_until(lambda: mount.daemon not in processes.with_token(arena.place.token), "the daemon's end")
        assert mount_at(mount.merged) is None
        mount.check_log()
        mount.start()
        assert (mount / "f").read_bytes() == b"y"


def test_layers_changed_behind_our_back(arena: Arena) -> None:
    """Layers changed under a mount (which is not allowed) give errors or old answers, never a dead mount."""
    lower = arena.directory("changing")
    for name in ("gone", "replaced", "d"):
        (lower / name).mkdir()
        (lower / name / "f").write_bytes(b"x")
    with arena.mount(lower) as mount:
        for name in ("gone", "replaced", "d"):
            (mount / name / "f").stat()
        (lower / "gone/f").unlink()
        (lower / "gone").rmdir()
        (lower / "replaced/f").unlink()
        (lower / "replaced").rmdir()
        (lower / "replaced").write_bytes(b"now a file")
        (arena.upper / "d").mkdir()
        (arena.upper / "d/f").mkdir()
        for name in ("gone", "replaced", "d"):
            for act in (
                lambda path: path.read_bytes(),
                lambda path: path.write_bytes(b"y"),
                lambda path: path.chmod(0o600),
                lambda path: path.rename(path.with_name("g")),
                lambda path: os.listdir(path.parent),
                lambda path: path.parent.rename(path.parent.with_name("moved")),
            ):
                try:
                    act(mount / name / "f")
                except OSError:
                    continue
        (mount / "alive").write_bytes(b"alive")
        assert (mount / "alive").read_bytes() == b"alive"
