"""`fuseunion log`: every copy-up, with its size and the program that caused it, also while it happens."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_status import sockets
from tests.support.arena import Arena
from tests.support.layers import File
from tests.support.mounts import FuseunionMount
from tests.support.waiting import wait_until


def log_of(arena: Arena, mount: FuseunionMount) -> list[dict[str, Any]]:
    """What `log --json` says."""
    done = arena.place.fuseunion("log", "--json", mount.merged)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def following(arena: Arena, mount: FuseunionMount, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`log --follow`, ended at the end of the block."""
    command = arena.place.interpreter.command("log", "--follow", *arguments, str(mount.merged))
    environment = arena.place.environment()
    with subprocess.Popen(command, env=environment, cwd="/", stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("wire", ["1", "0"], ids=["extension", "pyfuse3"])
@pytest.mark.actors("root", "user")
def test_each_reason(arena: Arena, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write, a change of mode, a link and a rename each copy one file, for the program that asked for it."""
    monkeypatch.setenv("FUSEUNION_WIRE", wire)
    names = ["written", "mode", "linked", "moved", "d/in a moved one"]
    lower = arena.lower(
        {**{name: File(b"x" * 5000) for name in names}, "odd \nname": File(b""), "big": File(b"y" * 3_000_000)}
    )
    begun = time.time()
    with arena.mount(lower) as mount:
        assert log_of(arena, mount) == []
        for command in (
            ["sh", "-c", 'printf z >>"$1"', "sh", "written"],
            ["chmod", "600", "mode"],
            ["ln", "linked", "another"],
            ["mv", "moved", "moved away"],
            ["mv", "d", "e"],
            ["touch", "odd \nname"],
            ["dd", "if=/dev/zero", "of=big", "conv=notrunc", "count=1", "status=none"],
            ["chmod", "640", "mode"],
        ):
            subprocess.run(command, cwd=mount.merged, check=True)
        said = log_of(arena, mount)
        by_path = {entry["path"]: entry for entry in said}
        assert [entry["number"] for entry in said] == [1, 2, 3, 4, 5, 6, 7]
        assert all(begun <= entry["when"] <= time.time() and 0 < entry["seconds"] < 30 for entry in said)

        def check(path: str, program: str, size: int, *requests: str) -> None:
            entry = by_path[path]
            assert (entry["program"], entry["size"]) == (program, size)
            assert entry["request"] in requests and entry["pid"] > 1
            assert entry["executable"] == os.path.realpath(shutil.which(program) or "")

        check("written", "sh", 5000, "write")
        check("mode", "chmod", 5000, "setattr")
        check("linked", "ln", 5000, "link")
        check("moved", "mv", 5000, "rename")
        check("d/in a moved one", "mv", 5000, "rename")
        check("odd \nname", "touch", 0, "setattr")
        check("big", "dd", 3_000_000, "write")
        lines = arena.place.fuseunion("log", mount.merged).stdout.splitlines()
        assert len(lines) == 7
        assert "4.9 KiB" in lines[0] and f"  written  write by sh ({by_path['written']['pid']})" in lines[0]
        assert "  odd \\nname  setattr by touch (" in lines[5]


@pytest.mark.actors("root", "user")
def test_following(arena: Arena) -> None:
    """What is copied up is said at once; a reader that ends is noticed, and the mount's end ends it."""
    lower = arena.lower({str(number): File(b"x") for number in range(40)})
    mount = arena.mount(lower)
    with mount, following(arena, mount, "--json") as process:
        assert process.stdout is not None
        for number in range(20):
            (mount / str(number)).chmod(0o600)
            entry = json.loads(process.stdout.readline())
            assert (entry["number"], entry["path"]) == (number + 1, str(number))
        # Readers that go are noticed although there is nothing to be said to them: else the later ones are refused.
        (status,) = sockets(arena, mount.daemon)
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as other:
                other.settimeout(10)
                other.connect(str(status.with_suffix(".control")))
                other.sendall(b"\0\0\0\x14order=log\0follow=1\0\0")
                assert b"missed=0" in other.recv(1000)
        result = arena.place.fuseunion("umount", mount.merged)
        assert result.returncode == 0
        assert process.wait(10) == 0
        mount.start()


@pytest.mark.parametrize("wire", ["1", "0"], ids=["extension", "pyfuse3"])
@pytest.mark.actors("root", "user")
def test_nobody_is_held_up(arena: Arena, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that stop reading, and some that say nothing or nonsense, cost nothing; what they miss is counted."""
    monkeypatch.setenv("FUSEUNION_WIRE", wire)
    count = 1050
    lower = arena.lower({f"{number:04}-{'long' * 40}": File(b"") for number in range(count)})
    with arena.mount(lower, arguments=["--volatile"]) as mount:
        (status,) = sockets(arena, mount.daemon)
        control = str(status.with_suffix(".control"))
        held = []
        for order in (
            b"",
            b"\0\0\0\x14order=log\0follow=1\0\0",
            b"\xff\xff\xff\xff",
            b"\0\0\0\0",
            b"\0\0\0\x03abc",
            b"\0\0",
        ):
            for _ in range(2):
                connection = socket.socket(socket.AF_UNIX)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                connection.connect(control)
                connection.sendall(order)
                held.append(connection)
        for name in os.listdir(mount.merged):
            os.utime(mount / name)
        said = log_of(arena, mount)
        assert said[0] == {"missed": count - 1000}
        assert [entry["number"] for entry in said[1:]] == list(range(count - 999, count + 1))
        for connection in held:
            connection.close()
        assert len(log_of(arena, mount)) == 1001


@pytest.mark.actors("user")
def test_mistakes(arena: Arena) -> None:
    """Each is one line."""
    lower = arena.lower({"f": File(b"")})
    plain = arena.directory("plain")

    def said(*arguments: str | Path) -> tuple[int, str]:
        done = arena.place.fuseunion("log", *arguments)
        assert done.stdout == ""
        return done.returncode, done.stderr

    assert said() == (2, "fuseunion: give one mounted directory: fuseunion log MERGED\n")
    assert said(plain) == (
        3,
        f"fuseunion: nothing of yours is mounted at '{plain}'; see all with: fuseunion status\n",
    )
    with arena.mount(lower) as mount:
        (status,) = sockets(arena, mount.daemon)
        with ExitStack() as stack:
            for _ in range(16):
                stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(status.with_suffix(".control")))
            assert said(mount.merged) == (1, "fuseunion: too many others ask its daemon\n")
        wait_until(lambda: arena.place.fuseunion("log", mount.merged).returncode == 0, "the end of the others")
        status.with_suffix(".control").unlink()
        code, text = said(mount.merged)
        assert code == 5 and "cannot be asked: it has no runtime directory" in text
    wait_until(lambda: not status.exists(), "the socket's end")
