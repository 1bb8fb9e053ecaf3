"""A file is made into a device, pipe or socket by its owner attribute: the kernel learns the type, and nobody waits."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio

from fuseunion.core.ownership.stored_names import OverrideName
from fuseunion.engines.fuse.pyfuse.operations import Operations
from fuseunion.engines.fuse.serving.requests import Requests
from tests.support.arena import Arena
from tests.support.inprocess import in_process

OVERRIDE = "user.containers.override_stat"
ROUNDS = 1000

_SETTER = f"""
import os, sys
while os.read(0, 1):
    try:
        os.setxattr(sys.argv[1], "{OVERRIDE}", b"0:0:0644:pipe")
    except FileNotFoundError:
        pass
    os.write(1, b"x")
"""


@pytest.mark.actors("user")
def test_a_type_is_set_while_names_are_removed(arena: Arena) -> None:
    """One process sets the type, another removes the name: the watchdog of the suite ends a dead lock.

    Removing a name holds the lock of the directory and waits for that of the file, which setxattr holds until its
    answer: an answer that waited for the lock of the directory would never come, not even after kill -9.
    """
    with arena.mount(arena.lower({}), arguments=["--fakeroot"]) as mount:
        name = mount / "name"
        command = [sys.executable, "-c", _SETTER, str(name)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as setter:
            assert setter.stdin is not None and setter.stdout is not None
            for _ in range(ROUNDS):
                name.touch()
                setter.stdin.write(b"x")
                name.unlink()
                assert setter.stdout.read(1) == b"x"
            setter.stdin.close()
        assert setter.returncode == 0
        name.touch()
        assert stat.S_ISREG(os.lstat(name).st_mode)


@pytest.mark.actors("user")
def test_the_type_is_seen_under_every_name_at_once(arena: Arena) -> None:
    """After the attribute is set, whatever is asked next by a path meets the new type; again and again."""
    with arena.mount(arena.lower({}), arguments=["--fakeroot"]) as mount:
        for number in range(20):
            one, two = mount / f"one{number}", mount / f"two{number}"
            one.touch()
            os.link(one, two)
            assert stat.S_ISREG(os.lstat(two).st_mode)
            os.setxattr(two, OVERRIDE, b"5:6:0600:pipe")
            os.chmod(one, 0o640)
            assert stat.filemode(os.lstat(two).st_mode) == "prw-r-----"
            # A pipe with nobody at the other end: an open of a regular file would not be refused.
            with pytest.raises(OSError, match="No such device or address"):
                os.open(one, os.O_WRONLY | os.O_NONBLOCK)
            assert {name: os.lstat(mount / name).st_nlink for name in os.listdir(mount.merged)} == dict.fromkeys(
                [f"{word}{count}" for count in range(number + 1) for word in ("one", "two")], 2
            )


@pytest.mark.trio
async def test_a_number_is_stale_until_the_kernel_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the answer to setxattr and the next lookup no reply says a type that the kernel does not know."""
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "upper/file").touch()
    told: list[int] = []
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda number, attr_only: told.append(number))
    monkeypatch.setattr(pyfuse3, "invalidate_entry", None)
    monkeypatch.setattr(pyfuse3, "invalidate_entry_async", None)
    context: Any = SimpleNamespace(uid=0, gid=0, pid=0, umask=0)
    with in_process(
        [tmp_path / "lower"], tmp_path / "upper", tmp_path / "work", store=OverrideName.CONTAINERS
    ) as inside:
        requests = Requests(inside.union, own_root=True)
        operations = Operations(requests)
        entry = await operations.lookup(pyfuse3.ROOT_INODE, b"file", context)
        with trio.fail_after(5):
            await operations.setxattr(entry.st_ino, OVERRIDE.encode(), b"1:2:0600:pipe", context)
        assert told == [entry.st_ino]
        for request in (
            operations.getattr(entry.st_ino, context),
            operations.open(entry.st_ino, os.O_RDONLY, context),
            operations.access(entry.st_ino, os.R_OK, context),
            operations.setxattr(entry.st_ino, b"user.x", b"y", context),
        ):
            with pytest.raises(pyfuse3.FUSEError, match="Stale"):
                await request
        again = await operations.lookup(pyfuse3.ROOT_INODE, b"file", context)
        assert again.st_ino == entry.st_ino
        assert stat.S_ISFIFO(again.st_mode)
        assert stat.S_ISFIFO((await operations.getattr(entry.st_ino, context)).st_mode)
        await operations.setxattr(entry.st_ino, OVERRIDE.encode(), b"1:2:0600:file", context)
        await operations.forget([(entry.st_ino, 2)])
        assert not requests._retyped
