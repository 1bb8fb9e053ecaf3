"""`fuseunion image`, killed at random moments: an image is as it was before or as it is after, and nothing is left.

Who sends SIGKILL gives nobody a chance to clean up; SIGTERM and SIGINT do, and then nothing may be left either where
the filesystem has no files without a name.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.images.commands import a_sif, an_upper, assert_equal, info, left, succeed
from tests.images.conftest import fsck, repair
from tests.support import processes
from tests.support.arena import Arena
from tests.support.layers import File, build
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.actors("root", "user")]

MIB = 1 << 20
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def interrupted(arena: Arena, delay: float, number: signal.Signals, *arguments: str | Path) -> int | None:
    """Run `fuseunion image`, send a signal after some seconds, and wait until everything that it started has ended.

    Returns:
        Its exit status.
    """
    command = arena.place.interpreter.command("image", *map(str, arguments))
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=arena.place.environment(), **quiet) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.send_signal(number)
    wait_until(lambda: not processes.with_token(arena.place.token), "the end of what it has started")
    return process.returncode


def again_and_again(
    arena: Arena, rounds: int, prepare: Callable[[], list[str | Path]], look: Callable[[bool], None]
) -> None:
    """Interrupt an action, whose duration is found out first, at random moments.

    Args:
        prepare: makes what the action needs, anew; returns its arguments.
        look: told whether the action said that it was done.
    """
    chance = random.Random(arena.actor.role.value)
    since = time.monotonic()
    interrupted(arena, 60, signal.SIGKILL, *prepare())
    whole = time.monotonic() - since
    look(True)
    for count in range(rounds):
        arguments = prepare()
        # From the moment on when the interpreter has started.
        delay = whole * chance.uniform(0.4, 1.0)
        code = interrupted(arena, delay, SIGNALS[count % len(SIGNALS)], *arguments)
        try:
            look(code == 0)
        except AssertionError as error:
            error.add_note(f"{SIGNALS[count % len(SIGNALS)].name} after {delay:.3f} of {whole:.3f} seconds")
            raise


def _resize(arena: Arena, rounds: int) -> None:
    file = arena.root / "x.img"
    upper = build(arena.root / "up", {"file": File(os.urandom(6 * MIB))})
    succeed("pack", "--size", "40M", upper, file)
    sizes = {40 * MIB}

    def prepare() -> list[str | Path]:
        now = file.stat().st_size
        wanted = 24 * MIB if now == 40 * MIB else 40 * MIB
        sizes.add(wanted)
        return ["resize", file, str(wanted)]

    def look(done: bool) -> None:
        # Between its hidden name and that of the image it is whole, but SIGKILL leaves both.
        for each in arena.root.glob(".x.img.fuseunion-*"):
            assert not done
            fsck(each)
            each.unlink()
        assert left(arena) == ["logs", "up", "x.img"]
        fsck(file)
        assert file.stat().st_size in sizes
        assert info(file)["filesystems"][0]["size"] == file.stat().st_size

    again_and_again(arena, rounds, prepare, look)
    succeed("unpack", file, arena.root / "again")
    assert (arena.root / "again/file").read_bytes() == (upper / "file").read_bytes()


def _pack(arena: Arena, rounds: int) -> None:
    upper, file = an_upper(arena), arena.root / "x.img"
    arena.guard(upper)

    def prepare() -> list[str | Path]:
        file.unlink(missing_ok=True)
        return ["pack", upper, file]

    def look(done: bool) -> None:
        assert set(left(arena)) <= {"logs", "up", "x.img"}
        assert file.exists() or not done
        if file.exists():
            fsck(file)
            succeed("unpack", file, arena.root / "again")
            assert_equal(upper, arena.root / "again", but=("mtime",))
            subprocess.run(["rm", "-r", str(arena.root / "again")], check=True)

    again_and_again(arena, rounds, prepare, look)


def _chown(arena: Arena, rounds: int) -> None:
    upper = build(arena.root / "up", {f"{number}/file": File(b"%d" % number) for number in range(60)})
    file = arena.root / "x.img"
    succeed("pack", "--size", "32M", upper, file)
    owners = [("root", [0, 0]), ("5:6", [5, 6])]
    count = 0

    def prepare() -> list[str | Path]:
        nonlocal count
        count += 1
        return ["chown", file, "--to", owners[count % 2][0]]

    def look(done: bool) -> None:
        repair(file)
        # The same command completes it.
        succeed("chown", file, "--to", owners[count % 2][0])
        assert info(file)["filesystems"][0]["owner_of_upper"] == owners[count % 2][1]
        fsck(file)
        assert len(succeed("ls", file, "upper").split()) == 60

    again_and_again(arena, rounds, prepare, look)


def _add_to_sif(arena: Arena, rounds: int) -> None:
    file = a_sif(arena)
    plain = file.read_bytes()
    size = len(plain)

    def prepare() -> list[str | Path]:
        file.write_bytes(plain)
        return ["create", "--size", "20M", file]

    def look(done: bool) -> None:
        found = info(file)["filesystems"]
        assert len(found) == 2 or not done
        assert file.read_bytes()[32768:size] == plain[32768:]
        assert succeed("check", file) if len(found) == 2 else succeed("create", "--size", "20M", file)
        assert info(file)["filesystems"][1]["state"] == "clean"

    again_and_again(arena, rounds, prepare, look)


ACTIONS = {"resize": _resize, "pack": _pack, "chown": _chown, "create": _add_to_sif}


@pytest.mark.parametrize("action", ACTIONS)
def test_killed(arena: Arena, action: str) -> None:
    ACTIONS[action](arena, 2)


@pytest.mark.stress
@pytest.mark.limit(1200)
@pytest.mark.parametrize("action", ACTIONS)
def test_killed_often(arena: Arena, action: str) -> None:
    ACTIONS[action](arena, 60)
