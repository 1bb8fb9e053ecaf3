"""What writing, truncating and chown take away: set-user-id, set-group-id, file capabilities.

A plain directory decides what is right; the rules are those of the kernel's file_remove_privs and setattr_prepare.
"""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.identity import acting_as
from tests.support.layers import Dir, File, Name, Node, build
from tests.support.mountinfo import mount_at
from tests.support.twin import Twin
from tests.support.waiting import wait_until

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
OTHER = 1000

pytestmark = pytest.mark.actors("root", "userns")


def _write(path: Path) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.write(b"w")


def _truncating_open(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def _descriptor_truncate(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(1)


ACTS: dict[str, Callable[[Path], None]] = {
    "write": _write,
    "open-truncate": _truncating_open,
    "truncate": lambda path: os.truncate(path, 1),
    "ftruncate": _descriptor_truncate,
}


def _files(prefix: str) -> dict[Name, Node]:
    found: dict[Name, Node] = {}
    for act in ACTS:
        for mode in (0o6777, 0o4777, 0o2777, 0o2767, 0o6767):
            found[f"{prefix}/{act}-{mode:o}"] = File(b"data", mode=mode)
        found[f"{prefix}/{act}-capability"] = File(b"data", mode=0o777, xattrs={"security.capability": CAPABILITY})
    return found


@pytest.mark.parametrize("uid", [0, OTHER], ids=["privileged", "unprivileged"])
def test_changing_data(arena: Arena, uid: int) -> None:
    """Each way to change data clears what the kernel clears on a plain directory, for lower and upper files."""
    lower = arena.lower({"lower": Dir(mode=0o777), "upper": Dir(mode=0o777), **_files("lower")})
    build(arena.upper, {"upper": Dir(mode=0o777), **_files("upper")})
    with arena.mount(lower, options=["allow_other"]) as mount:
        twin = Twin(arena, mount)

        def change(root: Path) -> None:
            with acting_as(uid):
                for place in ("lower", "upper"):
                    for path in sorted((root / place).iterdir()):
                        ACTS[path.name.rpartition("-")[0]](path)

        twin.both(change)
        twin.remount()


def test_chown_and_chmod(arena: Arena) -> None:
    """chown clears set-user-id even for root; chmod by a non-member of the group clears set-group-id."""
    description: dict[Name, Node] = {}
    for act in ("chown", "chgrp", "same", "chmod", "capability"):
        attributes = {"security.capability": CAPABILITY} if act == "capability" else {}
        description[act] = File(b"x", mode=0o6755, uid=OTHER, gid=0, xattrs=attributes)
        description[f"{act}-nonexec"] = File(b"x", mode=0o2745, uid=OTHER, gid=OTHER)
        description[f"{act}-dir"] = Dir(mode=0o2775, uid=OTHER, gid=0)
    lower = arena.lower(description)
    with arena.mount(lower, options=["allow_other"]) as mount:
        twin = Twin(arena, mount)

        def change(root: Path) -> None:
            for suffix in ("", "-nonexec", "-dir"):
                os.chown(root / f"chown{suffix}", 0, -1)
                os.chown(root / f"chgrp{suffix}", -1, OTHER + 1)
                os.chown(root / f"same{suffix}", -1, -1)
                os.chown(root / f"capability{suffix}", OTHER + 1, -1)
                with acting_as(OTHER):
                    os.chmod(root / f"chmod{suffix}", 0o2755)

        twin.both(change)
        twin.remount()


def test_permissions_are_checked(arena: Arena) -> None:
    """A caller without rights gets what they get on a plain directory."""
    lower = arena.lower(
        {
            "private/f": File(b"x"),
            "private": Dir(mode=0o700),
            "sticky": Dir(mode=0o1777),
            "sticky/theirs": File(mode=0o666),
            "readonly": File(b"r", mode=0o644),
        }
    )
    with arena.mount(lower, options=["allow_other"]) as mount:
        twin = Twin(arena, mount)

        def act(step: Callable[[Path], object]) -> None:
            def step_as_other(root: Path) -> object:
                with acting_as(OTHER):
                    return str(step(root))

            twin.both(step_as_other)

        act(lambda root: (root / "private/f").read_bytes())
        act(lambda root: (root / "sticky/theirs").unlink())
        act(lambda root: (root / "sticky/theirs").rename(root / "sticky/moved"))
        act(lambda root: (root / "sticky/mine").write_bytes(b"m"))
        act(lambda root: (root / "sticky/mine").unlink())
        act(lambda root: (root / "readonly").write_bytes(b"w"))
        act(lambda root: (root / "readonly").chmod(0o666))
        act(lambda root: os.chown(root / "readonly", OTHER, -1))
        act(lambda root: os.utime(root / "readonly", ns=(1, 1)))
        act(lambda root: os.setxattr(root / "readonly", "user.x", b"1"))
        act(lambda root: (root / "new").mkdir())


def _shown_mode(path: Path) -> int:
    """The mode alone, as stat(1) asks for it: the kernel may remember it when it asks for the times again."""
    return int(subprocess.run(["stat", "-c", "%a", path], check=True, capture_output=True, text=True).stdout, 8)


def test_a_cleared_bit_is_not_shown_any_more(arena: Arena) -> None:
    """What a write or O_TRUNC takes from the mode is gone for those who ask for nothing but the mode."""
    lower = arena.lower({name: File(b"data", mode=0o2666) for name in ("write", "truncate", "late", "own")})
    with arena.mount(lower, options=["allow_other"]) as mount:
        modes = {}
        for name in ("write", "truncate", "late", "own"):
            assert _shown_mode(mount / name) == 0o2666
            if name == "late":
                (mount / name).chmod(0o666)
            with acting_as(0 if name == "own" else OTHER):
                fd = os.open(mount / name, os.O_RDWR | (os.O_TRUNC if name == "truncate" else 0))
            if name == "late":
                (mount / name).chmod(0o2666)
            with acting_as(0 if name == "own" else OTHER):
                if name != "truncate":
                    os.pwrite(fd, b"w", 0)
                os.close(fd)
            modes[name] = _shown_mode(mount / name)
            assert (arena.upper / name).stat().st_mode & 0o7777 == modes[name]
        assert modes == {"write": 0o666, "truncate": 0o666, "late": 0o666, "own": 0o2666}


@pytest.mark.actors("root")
def test_truncating_by_a_process_out_of_sight(arena: Arena) -> None:
    """A caller of whom the daemon, in a pid namespace of its own, cannot see the groups truncates like any other."""
    lower = arena.lower({name: File(b"data", mode=0o2666) for name in ("open", "truncate", "write")})
    merged = arena.directory("merged")
    interpreter = arena.place.interpreter
    command = interpreter.command("-f", "-o", "allow_other", str(lower), str(arena.upper), str(merged))
    daemon = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", *command],
        env=arena.place.environment(),
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: mount_at(merged) is not None, "the mount")
        with acting_as(OTHER):
            os.close(os.open(merged / "open", os.O_WRONLY | os.O_TRUNC))
            os.truncate(merged / "truncate", 0)
            with open(merged / "write", "r+b") as file:
                file.write(b"D")
        assert [(merged / name).read_bytes() for name in ("open", "truncate", "write")] == [b"", b"", b"Data"]
        assert {_shown_mode(merged / name) for name in ("open", "truncate", "write")} == {0o666}
    finally:
        subprocess.run(["umount", merged], check=True)
        daemon.wait(30)
