"""A mount of the Python API goes when its program goes, by whatever end; and nothing is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from tests.api.programs import start
from tests.support import processes
from tests.support.arena import Arena
from tests.support.layers import File
from tests.support.mountinfo import mounts_under
from tests.support.waiting import wait_until

PROGRAM = """
m = fuseunion.mount(lower, engine={engine!r}, allow_writable_lower=True)
(m.merged / "new").touch()
{more}
tell(os.getpid())
sys.stdin.read()
"""

FORKED = """
if os.fork() == 0:
    import signal
    signal.pause()
"""
"""A child that holds every descriptor of the program, and lives on."""

EXECUTES = "tell(os.getpid()); sys.stdin.readline(); os.execv('/bin/cat', ['cat'])"


def _told(program: subprocess.Popen[str]) -> int:
    assert program.stdout is not None
    return int(json.loads(program.stdout.readline()))


def _is_clean(arena: Arena) -> bool:
    return not mounts_under(arena.root) and not os.listdir(arena.root / "tmp")


@pytest.mark.parametrize("engine", ["fuse", "kernel", "ranch"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.actors("userns")
def test_the_program_is_killed(arena: Arena, engine: str, number: signal.Signals) -> None:
    arena.lower({"a": File(b"a")})
    with start(arena, PROGRAM.format(engine=engine, more="")) as program:
        os.kill(_told(program), number)
        program.wait()
        wait_until(lambda: _is_clean(arena), "the end of the mount")
        wait_until(lambda: not processes.with_token(arena.place.token), "the end of the keeper")


@pytest.mark.actors("root", "user")
def test_the_program_is_killed_while_its_child_lives(arena: Arena) -> None:
    """The child holds the socket to the keeper, and is not the program."""
    arena.lower({"a": File(b"a")})
    with start(arena, PROGRAM.format(engine="fuse", more=FORKED)) as program:
        os.kill(_told(program), signal.SIGKILL)
        program.wait()
        wait_until(lambda: _is_clean(arena), "the end of the mount")
        wait_until(lambda: len(processes.with_token(arena.place.token)) == 1, "the end of all but the child")
        (child,) = processes.with_token(arena.place.token)
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: not processes.with_token(arena.place.token), "the end of the child")


@pytest.mark.actors("user")
def test_the_program_executes_another_one(arena: Arena) -> None:
    """The process goes on, and has no use for the mount any more."""
    arena.lower({"a": File(b"a")})
    with start(arena, PROGRAM.format(engine="fuse", more=EXECUTES)) as program:
        assert program.stdin is not None
        _told(program)
        assert not _is_clean(arena)
        program.stdin.write("\n")
        program.stdin.flush()
        wait_until(lambda: _is_clean(arena), "the end of the mount")
        wait_until(lambda: processes.with_token(arena.place.token) == [program.pid], "the end of the keeper")
        program.communicate(timeout=20)


@pytest.mark.actors("user")
def test_a_thread_that_mounted_may_end(arena: Arena) -> None:
    """The mount is the program's, not the thread's."""
    arena.lower({"a": File(b"a")})
    in_a_thread = """
import threading
made = []
thread = threading.Thread(target=lambda: made.append(fuseunion.mount(lower)))
thread.start()
thread.join()
tell(made[0].reset() or (made[0].merged / "a").exists())
"""
    with start(arena, PROGRAM.format(engine="fuse", more=in_a_thread)) as program:
        assert program.stdout is not None
        assert json.loads(program.stdout.readline()) is True
        _told(program)
        program.communicate("", timeout=20)
    assert _is_clean(arena)


@pytest.mark.actors("user")
def test_the_keeper_is_told_to_end(arena: Arena) -> None:
    """By whoever ends all processes in order, such as a machine that goes down."""
    arena.lower({"a": File(b"a")})
    with start(arena, PROGRAM.format(engine="fuse", more="")) as program:
        own = _told(program)
        for pid in processes.with_token(arena.place.token):
            if "fuseunion.api.keeper" in processes.command_line(pid) and pid != own:
                os.kill(pid, signal.SIGTERM)
        wait_until(lambda: _is_clean(arena), "the end of the mount")
        program.communicate("", timeout=20)
