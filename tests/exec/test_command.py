"""A command in a union: what it is given, what it sees, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.exec.stage import Stage, tree
from tests.support.arena import Arena
from tests.support.layers import Dir, File
from tests.support.waiting import wait_until

pytestmark = pytest.mark.actors("root", "user")


@pytest.mark.actors("root", "user", "lone")
def test_changes_go_to_the_upper_and_nowhere_else(arena: Arena, stage: Stage) -> None:
    lower = arena.lower(tree())
    said = stage.shell([lower, arena.upper], "cat /data/file; echo new >/data/file; rm /etc/passwd; echo $0 $(id -u)")
    assert said == ["of the lower", "sh 0"]
    assert (arena.upper / "data/file").read_text() == "new\n"
    assert stage.shell([lower, arena.upper], "cat /data/file; test ! -e /etc/passwd") == ["new"]
    assert sorted(os.listdir(arena.root)) == sorted({"logs", "upper", lower.name})


def test_without_an_upper_changes_are_dropped(arena: Arena, stage: Stage) -> None:
    lower = arena.lower(tree())
    for options in ([], ["--writable-tmpfs"], ["--engine", "kernel"]):
        assert stage.shell([*options, lower], "echo new >/data/file; cat /data/file") == ["new"]
    assert sorted(os.listdir(arena.root)) == ["logs", lower.name]


def test_places_that_had_to_be_made_are_gone_afterwards(arena: Arena, stage: Stage) -> None:
    lower = arena.lower({name: node for name, node in tree().items() if name not in ("proc", "sys", "dev", "tmp")})
    arena.directory("shared").joinpath("note").write_text("shared\n")
    options = ["--bind", f"{arena.root}/shared:/new/place", "--bind", f"{arena.root}/shared/note:/new/note:ro"]
    script = (
        "cat /new/place/note /new/note; echo back >/new/place/back; ! echo no 2>/dev/null >/new/note; echo x >/dev/null"
    )
    assert stage.shell([*options, lower, arena.upper], script) == ["shared", "shared"]
    assert (arena.root / "shared/back").read_text() == "back\n"
    assert sorted(os.listdir(arena.upper)) == ["etc"] or os.listdir(arena.upper) == []


def test_a_read_only_bind_cannot_be_written_to(arena: Arena, stage: Stage) -> None:
    lower = arena.lower(tree())
    arena.directory("shared")
    code, _, errors = stage.run("--bind", f"{arena.root}/shared:/data:ro", lower, "--", "touch", "/data/new")
    assert code == 1 and "Read-only" in errors


@pytest.mark.actors("root", "user", "lone")
def test_what_the_command_is_given(arena: Arena, stage: Stage) -> None:
    lower = arena.lower(tree())
    options = ["--env", "WORD=a b", "--workdir", "/data", "--hostname", "elsewhere", "--net", "none", lower]
    script = """
        echo "$WORD" $PWD $HOME $USER; uname -n; grep -c : /proc/net/dev
        ls /proc/self/fd | wc -l; stat -c %a /tmp; test -c /dev/null; ls /dev/pts >/dev/null
        ! touch /sys/new 2>/dev/null; head -c 1 /etc/hosts >/dev/null; ! grep -q "of the tree" /etc/hosts
    """
    # Of the descriptors three are those of the pipe to `wc`, and one is of `ls` itself.
    assert stage.shell(options, script) == ["a b /data /root root", "elsewhere", "1", "4", "1777"]


def test_nothing_of_the_machine_is_left(arena: Arena, stage: Stage) -> None:
    lower = arena.lower(tree())
    said = stage.shell(
        [lower], f"ls -d {arena.root} 2>/dev/null || echo gone; ls /; grep -c ' / / ' /proc/self/mountinfo"
    )
    assert said[0] == "gone"
    assert "var" not in said, "the old root"


def test_another_user(arena: Arena, stage: Stage) -> None:
    lower = arena.lower({**tree(), "home/app": Dir(mode=0o777)})
    said = stage.shell(["--user", "1500:1501", lower], "id -u; id -g; echo $HOME $USER; ! touch /data/new 2>/dev/null")
    assert said == ["1500", "1501", "/home/app app"]


def test_the_exit_status_is_passed_on(arena: Arena, stage: Stage) -> None:
    lower = arena.lower(tree())
    for pids in ([], ["--pid"]):
        assert stage.run(*pids, lower, "--", "sh", "-c", "exit 7")[0] == 7
        assert stage.run(*pids, lower, "--", "sh", "-c", "kill -TERM $$; sleep 9")[0] == 128 + signal.SIGTERM
    assert stage.run(lower, "--", "sh", "-c", "exit $#", "sh", "", "")[0] == 2
    code, _, errors = stage.run(lower, "--", "/no/such")
    assert code == 127 and errors == "fuseunion: '/no/such': no such command in the tree\n"
    assert stage.run(lower, "--", "/etc/passwd")[0] == 126
    code, _, errors = stage.run(lower, "--", "")
    assert code == 127 and errors == "fuseunion: '': no such command in the tree\n"


@pytest.mark.parametrize("place", [[], ["--pid"], ["--here"]], ids=["shared", "own", "here"])
def test_what_the_caller_ignores_is_ignored(arena: Arena, stage: Stage, place: list[str]) -> None:
    """As by nohup(1): neither a signal to the command nor one to exec ends it."""
    lower = arena.lower(tree())
    ignoring = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
    script = "kill -HUP $$; echo alive; read line; echo $line; kill -TERM $$"
    # Binds mean nothing with --here.
    made = stage.interpreter.command("exec") if place == ["--here"] else stage.command()
    arguments = [*made, *place, str(lower), "--", "sh", "-c", script]
    with subprocess.Popen(
        [*ignoring, *arguments],
        env=stage.environment(),
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "alive\n"
        process.send_signal(signal.SIGHUP)
        assert process.communicate("on\n", timeout=20)[0] == "on\n"
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("pids", [[], ["--pid"]], ids=["shared", "own"])
def test_signals_are_passed_on(arena: Arena, stage: Stage, pids: list[str]) -> None:
    lower = arena.lower(tree())
    script = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    with stage.start(*pids, lower, arena.upper, "--", "sh", "-c", script) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20)[0] == "caught\n"
    assert process.returncode == 3


@pytest.mark.actors("root", "user", "lone")
@pytest.mark.parametrize("pids", [[], ["--pid"]], ids=["shared", "own"])
def test_what_the_command_leaves_behind_is_ended(arena: Arena, stage: Stage, pids: list[str]) -> None:
    lower = arena.lower(tree())
    # In sessions of their own, as daemons are; the arena sees whether a process is left.
    stage.shell([*pids, lower, arena.upper], "setsid sleep 1000 & (setsid sleep 1000 &) ; exit 0")


def test_own_process_ids(arena: Arena, stage: Stage) -> None:
    lower = arena.lower(tree())
    said = stage.shell(["--pid", lower], "ls /proc | grep -c '^[0-9]'; echo $$")
    assert int(said[0]) < 6 and int(said[1]) < 6


def test_a_caller_that_ignores_the_end_of_children(arena: Arena, stage: Stage) -> None:
    """Such a caller's programs cannot wait for children, and exec would wait for ever."""
    lower = arena.lower(tree())
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", ignoring, *stage.command(lower, "--", "sh", "-c", "exit 7")]
    with subprocess.Popen(command, env=stage.environment(), cwd="/") as process:
        try:
            assert process.wait(timeout=20) == 7
        finally:
            process.kill()


def test_the_command_in_place_waits_for_its_group(arena: Arena, stage: Stage) -> None:
    """Once it has called execve(2), nobody else can change its process group (setpgid(2), EACCES)."""
    lower = arena.lower({"file": File(b"old\n")})
    late = """
import os, sys
from tests.support.waiting import wait_until
from fuseunion.__main__ import main

setpgid = os.setpgid

def late(pid, group):
    def waits():
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "SZ"
    if pid:
        wait_until(waits, "the child to wait, or to end")
    setpgid(pid, group)

os.setpgid = late
sys.argv[0] = "fuseunion"
sys.exit(main())
"""
    words = ["exec", "--here", str(lower), "--", "sh", "-c", "cat file; sleep 0"]
    done = subprocess.run(
        [sys.executable, "-c", late, *words],
        env={**stage.environment(), "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=lower,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "old\n", "")


@pytest.mark.actors("root", "user")
def test_in_place(arena: Arena, stage: Stage) -> None:
    lower = arena.lower({"src/file": File(b"old\n")})
    process = stage.arena.place.fuseunion(
        "exec", "--here", ".", arena.upper, "--", "sh", "-c", "echo new >src/file; cat src/file; pwd; id -u", cwd=lower
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == ["new", str(lower), str(os.geteuid())]
    assert (arena.upper / "src/file").read_text() == "new\n"
    process = stage.arena.place.fuseunion("exec", "--here", "--workdir", "no/such", ".", "--", "true", cwd=lower)
    assert (process.returncode, process.stderr) == (126, "fuseunion: --workdir 'no/such': No such file or directory\n")
    at = arena.directory("at")
    process = stage.arena.place.fuseunion("exec", "--at", at, lower, "--", "cat", at / "src/file")
    assert process.stdout == "old\n", process.stderr
    assert os.listdir(at) == []


@pytest.mark.actors("user")
@pytest.mark.parametrize("words", [[], ["--here"]], ids=["new", "here"])
def test_a_working_directory_that_has_gone(arena: Arena, stage: Stage, words: list[str]) -> None:
    lower, here = arena.lower(tree()), arena.directory("here")
    script = 'rmdir "$PWD"; exec "$@"'
    command = ["sh", "-c", script, "sh", *stage.interpreter.command("exec", *words, str(lower), "--", "pwd")]
    done = subprocess.run(
        command, env=stage.environment(), cwd=here, capture_output=True, text=True, timeout=40, check=False
    )
    says = "fuseunion: the working directory does not exist any more; change to another\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", says)


@pytest.mark.actors("user")
def test_read_only_by_a_word_of_an_option(arena: Arena, stage: Stage) -> None:
    lower = arena.lower(tree())
    assert stage.shell(["-o", "ro", lower], "! touch /data/new 2>/dev/null; echo done") == ["done"]


@pytest.mark.actors("user")
def test_a_user_who_is_not_there(arena: Arena, stage: Stage) -> None:
    """In a namespace of one id the filter answers for setuid(2): it must not be taken at its word."""
    lower = arena.lower(tree())
    around = ["unshare", "--user", "--map-root-user", "--"]
    inside = stage.command("--user", "1500", lower, "--", "id", "-u")
    for command in ([*around, *inside], stage.command("--user", "4000000:1", lower, "--", "id", "-u")):
        done = subprocess.run(
            command, env=stage.environment(), cwd="/", capture_output=True, text=True, timeout=40, check=False
        )
        assert (done.returncode, done.stdout) == (126, "")
        assert done.stderr.startswith("fuseunion: --user ") and "/proc/self/uid_map" in done.stderr


def test_the_root_of_the_machine_as_lower(arena: Arena, stage: Stage) -> None:
    probe = Path("/etc/fuseunion-probe")
    done = arena.place.fuseunion("exec", "/", "--", "sh", "-euc", f"echo x >{probe}; cat {probe}; rm /etc/passwd")
    assert (done.returncode, done.stdout) == (0, "x\n"), done.stderr
    assert not probe.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "give LOWER"),
        (["--bogus", "lower"], 2, "see fuseunion exec --help"),
        (["lower", "upper", "merged"], 2, "give LOWER"),
        (["--bind", "a:b", "lower"], 2, "has to be an absolute path"),
        (["--bind", "", "lower"], 2, "is empty"),
        (["--env", "WORD", "lower"], 2, "is not NAME=VALUE"),
        (["--user", "joe", "lower"], 2, "--user"),
        (["--net", "some", "lower"], 2, "--net"),
        (["--hostname", "a b", "lower"], 2, "--hostname"),
        (["--hostname", "\udcff", "lower"], 2, "--hostname"),
        (["--user", "9" * 5000, "lower"], 2, "is not a number"),
        (["--engine", "ranch", "lower"], 2, "no root directory"),
        (["--here", "--pid", "lower"], 2, "--pid"),
        (["--writable-tmpfs", "lower", "upper"], 2, "--writable-tmpfs"),
        (["-f", "lower"], 2, "-f"),
        (["nowhere"], 3, "nowhere"),
        (["--bind", "/no/such/thing", "lower"], 3, "/no/such/thing"),
        (["--read-only", "--bind", "/usr:/not/there", "lower"], 3, "/not/there"),
        (["--workdir", "/not/there", "lower", "--", "true"], 126, "/not/there"),
    ],
)
@pytest.mark.actors("user")
def test_mistakes(arena: Arena, stage: Stage, arguments: list[str], code: int, says: str) -> None:
    arena.lower(tree(), "lower")
    done = arena.place.fuseunion("exec", *arguments, cwd=arena.root)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("fuseunion: ") and done.stderr.count("\n") == 1 and says in done.stderr, done.stderr
    assert sorted(os.listdir(arena.root)) == ["logs", "lower"]


@pytest.mark.actors("user")
def test_nothing_of_ours_can_be_traced(arena: Arena, stage: Stage) -> None:
    """The command and our processes are of one user; what they have open would be a way to the machine."""
    lower = arena.lower(tree())
    script = """
        parent=$(sed -n 's/^PPid:\\t//p' /proc/$$/status)
        ls /proc/$parent/root/ 2>/dev/null && echo reached
        ls /proc/$parent/fd/ 2>/dev/null && echo reached
        for process in /proc/[0-9]*; do
            ls $process/root/var >/dev/null 2>&1 && echo "$process is reached"
        done
        echo done
    """
    with stage.start(lower, arena.upper, "--", "sh", "-c", script) as process:
        output, errors = process.communicate(timeout=40)
    assert (output, errors) == ("done\n", "")


@pytest.mark.actors("user")
def test_a_running_command_keeps_its_upper(arena: Arena, stage: Stage) -> None:
    lower = arena.lower(tree())
    with stage.start(lower, arena.upper, "--", "sh", "-c", "echo ready; exec sleep 1000") as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        code, _, errors = stage.run(lower, arena.upper, "--", "true")
        assert code == 4 and "upper" in errors
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    wait_until(lambda: not (arena.root / ".upper.fuseunion-work").exists(), "the end of the work directory")
