"""What people get wrong on the command line, and what they are told: one true line, a documented exit code, no change.

Each row is typed in a directory of directories (see `prepare`), as root and as an ordinary user. Nothing is mounted by
any of them, so the program runs within the test.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from fuseunion.cli.main import run
from tests.support import processes
from tests.support.arena import Arena
from tests.support.mountinfo import mount_at
from tests.support.waiting import wait_until

COMMAND_LINE, LAYERS, UNAVAILABLE = 2, 3, 5
LONG = "x" * 300
DEEP = "x/" * 2100


def prepare(arena: Arena) -> None:
    for name in ("base/d", "up", "work", "m", "a:b", "foreign/data"):
        arena.directory(name)
    (arena.root / "file").touch()
    (arena.root / "loop").symlink_to("loop")
    os.mkfifo(arena.root / "fifo")


def names(root: Path) -> list[str]:
    return sorted(str(path) for path in root.rglob("*"))


MISTAKES: list[tuple[int, str, list[str]]] = [
    # commands
    (COMMAND_LINE, "unknown command 'unmount'; did you mean 'fuseunion umount'?", ["unmount", "m"]),
    (COMMAND_LINE, "did you mean 'fuseunion umount'?", ["Umount", "m"]),
    (COMMAND_LINE, "did you mean 'fuseunion umount'?", ["umuont", "--lazy", "m"]),
    (COMMAND_LINE, "did you mean 'fuseunion umount'?", ["--umount", "m"]),
    (COMMAND_LINE, "did you mean 'fuseunion sync'?", ["snyc", "m"]),
    (COMMAND_LINE, "did you mean 'fuseunion doctor'?", ["docter"]),
    (COMMAND_LINE, "did you mean 'fuseunion doctor'?", ["fix", "m"]),
    (COMMAND_LINE, "did you mean 'fuseunion check'?", ["fsck", "m"]),
    (COMMAND_LINE, "give one directory; see fuseunion check --help", ["check"]),
    (COMMAND_LINE, "say which form with --to: kernel, fuse-overlayfs or oci", ["convert", "m"]),
    (COMMAND_LINE, "--to tar: expected kernel, fuse-overlayfs or oci", ["convert", "m", "--to", "tar"]),
    (COMMAND_LINE, "give them with --lower", ["vacuum", "m"]),
    (COMMAND_LINE, "give the upper directory and a name", ["snapshot", "m"]),
    (COMMAND_LINE, "'a/b' cannot be the name of a snapshot", ["snapshot", "m", "a/b"]),
    (COMMAND_LINE, "give the upper directory and the name of a snapshot", ["restore", "m"]),
    (COMMAND_LINE, "a mount has no command name", ["mount", "base", "up", "m"]),
    (COMMAND_LINE, "see fuseunion --help", ["help"]),
    (COMMAND_LINE, "unknown command 'frobnicate'; the commands are add-lower, apply, check, ", ["frobnicate"]),
    (COMMAND_LINE, "did you mean 'fuseunion import'?", ["load", "layer.tar", "m"]),
    # layers
    (COMMAND_LINE, "give one directory: fuseunion diff UPPER", ["diff"]),
    (COMMAND_LINE, "exclude each other", ["diff", "up", "--tree", "--json"]),
    (COMMAND_LINE, "--content compares with the lower directories", ["diff", "up", "--content"]),
    (LAYERS, "upper directory 'no' does not exist", ["diff", "no"]),
    (LAYERS, "upper directory 'file' is not a directory", ["diff", "file"]),
    (LAYERS, "lower directory 'no' does not exist", ["diff", "up", "--lower", "no"]),
    (COMMAND_LINE, "give one upper directory", ["export", "-o", "x.tar"]),
    (COMMAND_LINE, "--format zip: expected one of oci, overlay, oci-archive", ["export", "up", "--format", "zip"]),
    (COMMAND_LINE, "--name is for --format oci-archive", ["export", "up", "--name", "x", "-o", "x.tar"]),
    (COMMAND_LINE, "--mtime yesterday: expected seconds", ["export", "up", "--mtime", "yesterday", "-o", "x.tar"]),
    (COMMAND_LINE, "--uid-map=1: expected triples", ["export", "up", "--uid-map", "1", "-o", "x.tar"]),
    (1, "'nowhere/x.tar' cannot be made: No such file", ["export", "up", "-o", "nowhere/x.tar"]),
    (LAYERS, "'base' is a directory; give the name of a file", ["export", "up", "-o", "base"]),
    (LAYERS, "'up/x.tar' lies in 'up', which goes into it", ["export", "up", "-o", "up/x.tar"]),
    (COMMAND_LINE, "give at least one archive", ["import", "m"]),
    (LAYERS, "archive 'no.tar' does not exist", ["import", "no.tar", "new"]),
    (LAYERS, "'base' is a directory, no archive", ["import", "base", "new"]),
    (LAYERS, "'file' cannot be used", ["import", "file", "new"]),
    (LAYERS, "'base' is not empty; give a new directory, or --add", ["import", "file", "base"]),
    (LAYERS, "'nowhere/new' cannot be made: No such file", ["import", "file", "nowhere/new"]),
    (COMMAND_LINE, "--limit much: expected a number of bytes", ["import", "--limit", "much", "file", "new"]),
    (COMMAND_LINE, "--max-entries 0: expected a number", ["import", "--max-entries", "0", "file", "new"]),
    (COMMAND_LINE, "--max-entries 99999", ["import", "--max-entries", "9" * 5000, "file", "new"]),
    (COMMAND_LINE, "--to 99999", ["chown", "--to", f"{'9' * 5000}:0", "up"]),
    (COMMAND_LINE, "give three directories", ["commit", "base", "up"]),
    (LAYERS, "'base/new' lies in the layer 'base'", ["commit", "base", "up", "base/new"]),
    (LAYERS, "'base' lies in the layer", ["commit", "base", "up", "base"]),
    (COMMAND_LINE, "give two directories: fuseunion apply", ["apply", "up"]),
    (COMMAND_LINE, "give --undo, or --forget, and the lower directory", ["apply", "--undo", "up", "base"]),
    (LAYERS, "nothing is kept of what 'base' had", ["apply", "--undo", "base"]),
    (LAYERS, "lower directory 'no' does not exist", ["apply", "up", "no"]),
    # options
    (COMMAND_LINE, "'--readonly'; did you mean --read-only?", ["--readonly", "base", "m"]),
    (COMMAND_LINE, "did you mean --ephemeral?", ["--ephemral", "base", "m"]),
    (COMMAND_LINE, "did you mean --size?", ["--sise=1m", "--ephemeral", "base", "m"]),
    (COMMAND_LINE, "did you mean -o noacl?", ["--noacl", "base", "up", "m"]),
    (COMMAND_LINE, "did you mean -o upperdir=up?", ["--upperdir=up", "base", "m"]),
    (COMMAND_LINE, "did you mean -o allow_other?", ["-o", "allow_oter", "base", "up", "m"]),
    (COMMAND_LINE, "did you mean -o allow_other?", ["-o", "Allow_Other", "base", "up", "m"]),
    (COMMAND_LINE, "did you mean -o timeout=?", ["-o", "timout=5", "base", "up", "m"]),
    (COMMAND_LINE, "did you mean --read-only?", ["-o", "read_only", "base", "m"]),
    (COMMAND_LINE, "did you mean --fakeroot?", ["-o", "fakeroot", "base", "up", "m"]),
    (COMMAND_LINE, "did you mean lowerdir= ?", ["-o", "lower=base,upperdir=up", "m"]),
    (COMMAND_LINE, "did you mean -r -f?", ["-rf", "base", "m"]),
    (COMMAND_LINE, "did you mean --lazy?", ["umount", "--lasy", "m"]),
    (COMMAND_LINE, "did you mean --read-only?", ["-read-only", "base", "m"]),
    (
        COMMAND_LINE,
        "unavailable option 'nosuch'; see fuseunion --help",
        ["-o", "nosuch", "base", "up", "m"],
    ),
    (COMMAND_LINE, "--volatile takes no value", ["--volatile=yes", "base", "up", "m"]),
    (COMMAND_LINE, "-o needs a value", ["-o"]),
    (COMMAND_LINE, "unknown option '-f'", ["umount", "-f", "m"]),
    (COMMAND_LINE, "remount: a mount cannot be changed", ["-o", "remount,ro", "base", "up", "m"]),
    (COMMAND_LINE, "remount: a mount cannot be changed", ["-o", "remount,lowerdir=base", "m"]),
    (COMMAND_LINE, r"option 'b\xff=1'", ["-o", os.fsdecode(b"b\xff=1"), "base", "up", "m"]),
    # contradictions, and things said twice
    (COMMAND_LINE, "contradict each other", ["--read-only", "-o", "rw", "base", "m"]),
    (COMMAND_LINE, "cannot go with --work", ["--ephemeral", "--work", "work", "base", "m"]),
    (COMMAND_LINE, "cannot go with --read-only", ["--ephemeral", "--read-only", "base", "m"]),
    (COMMAND_LINE, "too many directories", ["--ephemeral", "base", "up", "m"]),
    (COMMAND_LINE, "workdir is given twice", ["--work", "a", "--work", "b", "base", "up", "m"]),
    (COMMAND_LINE, "upperdir is given twice", ["-o", "upperdir=up,upperdir=work", "base", "m"]),
    (COMMAND_LINE, "too many directories", ["-o", "upperdir=up", "base", "up", "m"]),
    (COMMAND_LINE, "too many directories", ["-o", "lowerdir=base", "base", "up", "m"]),
    (COMMAND_LINE, "both show disk id 0", ["--uid-map=0:0:1", "--uid-map=0:0:1", "base", "up", "m"]),
    (COMMAND_LINE, "either --to or --map", ["chown", "up", "--to", "1:2", "--map", "0:1:1"]),
    # missing and empty
    (COMMAND_LINE, "no directories given", []),
    (COMMAND_LINE, "'base' alone is not enough", ["base"]),
    (COMMAND_LINE, "no UPPER directory given", ["base", "m"]),
    (COMMAND_LINE, "too many directories", ["base", "up", "m", "more"]),
    (COMMAND_LINE, "LOWER is empty", ["", "up", "m"]),
    (COMMAND_LINE, "UPPER is empty", ["base", "", "m"]),
    (COMMAND_LINE, "UPPER is empty", ["--read-only", "base", "", "m"]),
    (COMMAND_LINE, "UPPER is empty", ["-o", "ro", "base", "", "m"]),
    (COMMAND_LINE, "MERGED is empty", ["base", "up", ""]),
    (COMMAND_LINE, "the value of --work is empty", ["--work=", "base", "up", "m"]),
    (COMMAND_LINE, "the value of --log-file is empty", ["--log-file", "", "base", "up", "m"]),
    (COMMAND_LINE, "upperdir= is empty", ["-o", "lowerdir=base,upperdir=", "m"]),
    (COMMAND_LINE, "workdir= is empty", ["-o", "workdir=", "base", "up", "m"]),
    (COMMAND_LINE, "timeout=: expected", ["-o", "timeout=", "base", "up", "m"]),
    (COMMAND_LINE, "empty directory name", ["base::", "up", "m"]),
    (COMMAND_LINE, "argument 1 of 'fuseunion umount' is empty", ["umount", ""]),
    (COMMAND_LINE, "give a mounted directory", ["umount"]),
    (COMMAND_LINE, "give one of the shells", ["completion"]),
    # values
    (COMMAND_LINE, "--size 10q: expected a number", ["--size", "10q", "--ephemeral", "base", "m"]),
    (COMMAND_LINE, "--size 0: expected a number", ["--size", "0", "--ephemeral", "base", "m"]),
    (COMMAND_LINE, "--size limits the upper of --ephemeral", ["--size", "1m", "base", "up", "m"]),
    (COMMAND_LINE, "--timeout=abc: expected a number of seconds", ["--timeout", "abc", "base", "up", "m"]),
    (COMMAND_LINE, "--timeout=5,ro: expected a number", ["--timeout", "5,ro", "base", "up", "m"]),
    (COMMAND_LINE, "images=loop: expected auto, fuse or kernel", ["-o", "images=loop", "base", "up", "m"]),
    (COMMAND_LINE, "spin=2000: expected", ["-o", "spin=2000", "base", "up", "m"]),
    (COMMAND_LINE, "--depth=-1", ["--depth", "-1", "base", "up", "m"]),
    (COMMAND_LINE, "--engine Fuse: expected one of auto", ["--engine", "Fuse", "base", "up", "m"]),
    (COMMAND_LINE, "--links both: expected one of", ["--links", "both", "base", "up", "m"]),
    (COMMAND_LINE, "expected triples", ["--uid-map", "0:0", "base", "up", "m"]),
    (COMMAND_LINE, "'a' is not a number", ["--uid-map", "a:b:c", "base", "up", "m"]),
    (COMMAND_LINE, "expected SRC:DST", ["--inject", "x", "base", "up", "m"]),
    (COMMAND_LINE, "'file/log' cannot be opened: Not a directory", ["--log-file", "file/log", "base", "up", "m"]),
    (COMMAND_LINE, "'fifo' cannot be opened: No such device or address", ["--log-file", "fifo", "base", "up", "m"]),
    (COMMAND_LINE, "--to nobodyx: expected root or UID:GID", ["chown", "up", "--to", "nobodyx"]),
    (COMMAND_LINE, "xattr_permissions=3: expected", ["-o", "xattr_permissions=3", "base", "up", "m"]),
    # directories
    (LAYERS, "lower directory 'nosuch' does not exist; check the path", ["nosuch", "up", "m"]),
    (LAYERS, "lower directory 'file' is not a directory", ["file", "up", "m"]),
    (LAYERS, "upper directory 'file' is not a directory", ["base", "file", "m"]),
    (LAYERS, "make it with: mkdir 'nosuch'", ["base", "up", "nosuch"]),
    (LAYERS, "merged directory 'file' is not a directory", ["base", "up", "file"]),
    (LAYERS, "merged directory '/' cannot be covered", ["base", "up", "/"]),
    (LAYERS, "upper directory 'nosuch' does not exist", ["--read-only", "base", "nosuch", "m"]),
    (LAYERS, r"'a' is a part of 'a:b'; write a colon in a path as '\:'", ["a:b", "up", "m"]),
    (LAYERS, r"lower directory 'new\nline' does not exist", ["new\nline", "up", "m"]),
    (LAYERS, r"lower directory 'esc\x1b[31m' does not exist", ["esc\x1b[31m", "up", "m"]),
    (LAYERS, r"lower directory 'nob\xffd' does not exist", [os.fsdecode(b"nob\xffd"), "up", "m"]),
    (LAYERS, "has a name that is too long", [LONG, "up", "m"]),
    (LAYERS, "has a name that is too long", [DEEP, "up", "m"]),
    (LAYERS, "name each once", ["base:base", "up", "m"]),
    (LAYERS, "name each once", ["base:./base/../base", "up", "m"]),
    (LAYERS, "lies inside the lower directory 'base'", ["base", "base/d", "m"]),
    (LAYERS, "lies inside the upper directory 'base'", ["base/d", "base", "m"]),
    (LAYERS, "choose one on another filesystem, or mount with --ephemeral", ["/", "up", "m"]),
    (LAYERS, "make the directory '", ["base", "nosuch/up", "m"]),
    (LAYERS, "'/proc/x' cannot be made: No such file or directory; choose another place", ["base", "/proc/x", "m"]),
    (LAYERS, "foreign files ('data')", ["--work", "foreign", "base", "up", "m"]),
    (LAYERS, "work directory 'file' is not a directory", ["--work", "file", "base", "up", "m"]),
    (LAYERS, "work directory 'm' is the merged directory too", ["--work", "m", "base", "up", "m"]),
    (LAYERS, "is the same directory as the upper directory", ["--work", "up", "base", "up", "m"]),
    (LAYERS, "lower directory '-x' does not exist", ["--", "-x", "up", "m"]),
    (LAYERS, "lower directory 'fifo' is not a directory", ["fifo", "up", "m"]),
    (LAYERS, "lower directory 'loop' has too many symbolic links", ["loop", "up", "m"]),
    (LAYERS, "merged directory 'loop' has too many symbolic links", ["base", "up", "loop"]),
    # commands on what is not ours
    (LAYERS, "'m' is not a mount point", ["umount", "m"]),
    (LAYERS, "'nosuch' does not exist", ["umount", "nosuch"]),
    (LAYERS, "'/proc' is mounted by 'proc', not by fuseunion", ["umount", "/proc"]),
    (LAYERS, "neither mounted by fuseunion nor a ranch", ["sync", "m"]),
    (LAYERS, "'m' is not a ranch; give", ["promote", "m", "x"]),
    (LAYERS, "there is nothing to repair", ["doctor", "--repair", "m"]),
    (LAYERS, "upper directory 'nosuch' does not exist", ["chown", "nosuch", "--to", "root"]),
    (UNAVAILABLE, "it keeps no owners in attributes", ["--fakeroot", "--engine", "kernel", "base", "up", "m"]),
    (UNAVAILABLE, "a tree of links cannot be read-only", ["--engine", "ranch", "--read-only", "base", "m"]),
]


@pytest.mark.actors("root", "user")
@pytest.mark.parametrize(
    ("code", "says", "arguments"), MISTAKES, ids=[ascii(" ".join(row[2]))[1:60] or "nothing" for row in MISTAKES]
)
def test_a_mistake(arena: Arena, code: int, says: str, arguments: list[str]) -> None:
    prepare(arena)
    before, directory = names(arena.root), os.getcwd()
    os.chdir(arena.root)
    try:
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            assert run(["fuseunion", *arguments]) == code, printed.getvalue()
    finally:
        os.chdir(directory)
    said = printed.getvalue()
    assert said.startswith("fuseunion: ") and said.count("\n") == 1, said
    assert says in said
    assert said.removesuffix("\n").isprintable()
    assert names(arena.root) == before
    assert mount_at(arena.root / "m") is None


# -- the world around --------------------------------------------------------------------------------------------------


def shell(arena: Arena, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in which `$F` is the program."""
    environment = {**arena.place.environment(), "F": " ".join(arena.place.interpreter.command())}
    return subprocess.run(
        ["bash", "-c", script], cwd=arena.root, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.actors("root", "user")
@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors(arena: Arena, closing: str) -> None:
    """A layer must not get the number of one, to be closed with it, or to be written to."""
    prepare(arena)
    done = shell(arena, f"$F base up m {closing} && test -d m/d && touch m/new && $F umount m {closing}")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert (arena.root / "up/new").exists()
    assert shell(arena, f"$F nosuch up m {closing}").returncode == LAYERS


@pytest.mark.actors("user")
@pytest.mark.parametrize("command", ["--version", "--help", "umount --help", "completion bash", "doctor --json"])
def test_a_full_stdout(arena: Arena, command: str) -> None:
    done = shell(arena, f"$F {command} >/dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "No space left on device" in done.stderr


@pytest.mark.actors("root", "user")
def test_no_home_and_no_working_directory(arena: Arena) -> None:
    prepare(arena)
    done = shell(arena, "env -u HOME -u USER $F base up m && env -u HOME -u USER $F umount m")
    assert (done.returncode, done.stderr) == (0, "")
    (arena.root / "gone").mkdir()
    for command in ("base up m", "umount m", "chown up --to root"):
        done = shell(arena, f"mkdir -p gone; cd gone; rmdir ../gone; $F {command}")
        expected = "fuseunion: the working directory does not exist any more; change to another\n"
        assert (done.returncode, done.stderr) == (1, expected), command


@pytest.mark.actors("root", "user")
def test_interrupted_while_it_mounts(arena: Arena) -> None:
    """^C at any moment: the mount is there and answers, or nothing of it but an empty UPPER."""
    prepare(arena)
    shutil.rmtree(arena.root / "up")
    before = names(arena.root)
    merged = arena.root / "m"
    command = arena.place.interpreter.command(str(arena.root / "base"), str(arena.root / "up"), str(merged))
    for milliseconds in range(20, 170, 13):
        with subprocess.Popen(
            command, env=arena.place.environment(), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        ) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(milliseconds / 1000)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
        if process.returncode == 0:
            assert arena.place.fuseunion("umount", merged).returncode == 0
            os.rmdir(arena.root / "up")
            assert names(arena.root) == before
            break  # it was too late
        if process.returncode != 130 and b"fuseunion/cli" not in said:
            continue  # the interpreter was starting, and no line of ours was reached
        assert process.returncode == 130, said
        assert said == b"", milliseconds
        wait_until(lambda: not processes.with_token(arena.place.token), "the daemon's end")
        assert mount_at(merged) is None
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(arena.root / "up")  # it was mounted for a moment
        assert names(arena.root) == before, milliseconds


_TOO_LATE = """
import os, signal, sys
from fuseunion.engines.fuse import daemon
answered = daemon._await_answer
def interrupted(target):
    os.kill(os.getpid(), signal.SIGINT)
    answered(target)
daemon._await_answer = interrupted
from fuseunion.__main__ import main
sys.exit(main())
"""


@pytest.mark.actors("root", "user")
def test_interrupted_too_late(arena: Arena) -> None:
    """^C when the daemon serves already: nothing that it stands on is taken away, and nobody is told that it was."""
    prepare(arena)
    shutil.rmtree(arena.root / "up")
    place, merged = arena.place, arena.root / "m"
    done = subprocess.run(
        [place.interpreter.executable, "-c", _TOO_LATE, arena.root / "base", arena.root / "up", merged],
        env=place.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert mount_at(merged) is not None
    (merged / "new").write_bytes(b"new")
    assert place.fuseunion("umount", merged).returncode == 0
    assert (arena.root / "up/new").read_bytes() == b"new"
