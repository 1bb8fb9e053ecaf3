"""However it ends, nothing is left: no process, no mount, no directory, and an upper that can be mounted.

FUSEUNION_STRESS=1 kills 200 runs instead of a few.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess

import pytest

from tests.conftest import STRESS_VARIABLE
from tests.exec.stage import Stage, tree
from tests.support import mountinfo, processes
from tests.support.arena import Arena
from tests.support.layers import Dir, build
from tests.support.waiting import wait_until

_STRESS = bool(os.environ.get(STRESS_VARIABLE))
_RUNS = 200 if _STRESS else 3

pytestmark = pytest.mark.actors("root")

_BUSY = """
(setsid sleep 1000 &)
while :; do cp -r /data /copy; chown -R 0:0 /copy; rm -r /copy; done
"""


@pytest.mark.limit(1200 if _STRESS else 60)
def test_killed_at_any_moment(arena: Arena, watched: Stage) -> None:
    """SIGKILL for any one of its processes."""
    lower = arena.lower(tree())
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for number in range(_RUNS):
        options = chance.choice([[], ["--pid"]])
        said = _kill_one(arena, watched, [*options, lower, arena.upper], chance)
        assert sorted(set(os.listdir(arena.root)) - {"upper"}) == sorted(("logs", lower.name)), f"run {number}: {said}"
        assert mountinfo.mounts_under(arena.root) == [], said
    assert watched.shell([lower, arena.upper], "cat /data/file") == ["of the lower\n".strip()]


def test_what_the_caller_had_started_goes_on(arena: Arena, watched: Stage) -> None:
    """A script may start something, and then call execve(2): that is a child of ours, and none of our business."""
    lower = arena.lower(tree())
    script = 'sleep 1000 >/dev/null 2>&1 & echo $!; exec "$@"'
    command = watched.command(lower, arena.upper, "--", "sh", "-c", "(setsid sleep 1000 &); echo done; exit 3")
    who = {} if watched.who is None else {"user": watched.who[0], "group": watched.who[1], "extra_groups": []}
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command],
        env=watched.environment(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        **who,  # type: ignore[call-overload]
    )
    other, said = done.stdout.split()
    assert (done.returncode, said, done.stderr) == (3, "done", "")
    assert processes.with_token(arena.place.token) == [int(other)]
    os.kill(int(other), signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{other}"), "the end of what the caller had started")


def _kill_one(arena: Arena, watched: Stage, arguments: list[object], chance: random.Random) -> str:
    """One run, until nothing of it is left; returns who was killed."""
    with watched.start(*map(str, arguments), "--", "sh", "-c", _BUSY) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=chance.uniform(0, 0.6))
        alive = processes.with_token(arena.place.token)
        victim = chance.choice(alive) if alive else 0
        name = f"{alive.index(victim) if alive else 0} of {len(alive)}: {processes.command_line(victim)}"
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim or process.pid, signal.SIGKILL)
        # A program that the command has started is no reason to end.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.3)
        process.terminate()
        wait_until(lambda: not processes.with_token(arena.place.token), f"the end of everything after {name}", 20)
    return name


@pytest.mark.limit(1200 if _STRESS else 60)
def test_killed_with_the_upper_in_the_lower(arena: Arena, watched: Stage) -> None:
    lower = build(arena.root / "lower", {**tree(), "data/home": Dir()})
    owner = os.stat(arena.root)
    os.chown(lower / "data/home", owner.st_uid, owner.st_gid)
    chance = random.Random(seed := random.randrange(2**32))
    print(f"seed {seed}")
    for number in range(_RUNS):
        said = _kill_one(arena, watched, [lower, lower / "data/home/upper"], chance)
        assert set(os.listdir(lower / "data/home")) <= {"upper"}, f"run {number}: {said}"
    script = "cat /data/file; ls -A /data/home/upper"
    assert watched.shell([lower, lower / "data/home/upper"], script) == ["of the lower"]


def test_a_killed_daemon_ends_the_command(arena: Arena, watched: Stage) -> None:
    lower = arena.lower(tree())
    with watched.start(lower, arena.upper, "--", "sh", "-c", "echo ready; sleep 1000") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        (daemon,) = [
            pid for pid in processes.with_token(arena.place.token) if "/dev/fuse" in processes.descriptors(pid).values()
        ]
        os.kill(daemon, signal.SIGKILL)
        assert process.wait(timeout=20) == 1
        assert process.stderr.read() == "fuseunion: the daemon of the union has ended; the command was ended too\n"
    assert not (arena.root / ".upper.fuseunion-work").exists()


def test_the_caller_may_go_first(arena: Arena, watched: Stage) -> None:
    """The terminal closes, or somebody uses kill -9."""
    lower = arena.lower(tree())
    script = "echo ready; echo new >/data/file; trap '' HUP TERM; setsid sleep 1000 & sleep 1000"
    with watched.start(lower, arena.upper, "--", "sh", "-c", script) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.kill()
        wait_until(lambda: not processes.with_token(arena.place.token), "the end of everything")
    assert not (arena.root / ".upper.fuseunion-work").exists()
