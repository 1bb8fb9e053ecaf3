"""`fuseunion top` in a pseudo-terminal, whose screen is read as a person would."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyte
import pytest

from tests.support.arena import Arena
from tests.support.layers import File
from tests.support.mounts import FuseunionMount

PATIENCE = 20.0


class Terminal:
    """A terminal in which the command runs."""

    def __init__(self, arena: Arena, *arguments: str, size: tuple[int, int] = (80, 24), **environment: str) -> None:
        self.ours, self.theirs = pty.openpty()
        self.screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self.screen)
        self.said = b""
        self.resize(*size)
        self.before = termios.tcgetattr(self.theirs)
        self.process = subprocess.Popen(
            arena.place.interpreter.command("top", *arguments),
            env={**arena.place.environment(), "TERM": "xterm-256color", **environment},
            cwd="/",
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def resize(self, width: int, height: int) -> None:
        """Give it another size."""
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.screen.resize(height, width)
        self.screen.reset()

    def read(self) -> None:
        """Take what was written, if something comes."""
        if select.select([self.ours], [], [], 0.1)[0]:
            data = os.read(self.ours, 1 << 16)
            self.said += data
            self._stream.feed(data)

    def wait(self, condition: Callable[[list[str]], object], what: str) -> None:
        """Read until the screen is such."""
        end = time.monotonic() + PATIENCE
        while not condition(self.screen.display):
            shown = "\n".join(self.screen.display)
            assert time.monotonic() < end, f"no {what}:\n{shown}"
            self.read()

    def press(self, keys: str) -> None:
        """Type something."""
        os.write(self.ours, keys.encode())

    def end(self) -> int:
        """Wait for the end; what is left on the terminal is what was there before."""
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < end, "it does not end"
            self.read()
        self.read()
        assert termios.tcgetattr(self.theirs) == self.before
        assert self.said.count(b"\x1b[?1049h") == self.said.count(b"\x1b[?1049l") == 1, "the other screen"
        assert self.said.rfind(b"\x1b[?25h") > self.said.rfind(b"\x1b[?25l"), "the cursor is shown"
        return self.process.returncode

    def close(self) -> None:
        """Whatever happened."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@contextmanager
def terminal(
    arena: Arena, mount: FuseunionMount, size: tuple[int, int] = (80, 24), **environment: str
) -> Iterator[Terminal]:
    made = Terminal(arena, str(mount.merged), size=size, **environment)
    try:
        yield made
    finally:
        made.close()


def shows(text: str) -> Callable[[list[str]], bool]:
    """Whether a line of the screen matches."""
    return lambda lines: any(re.search(text, line) for line in lines)


@pytest.mark.parametrize("wire", ["1", "0"], ids=["extension", "pyfuse3"])
@pytest.mark.actors("root", "user")
def test_a_mount_at_work(arena: Arena, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests, busy files and copy-ups are there as they happen, at 80x24 and every other size."""
    monkeypatch.setenv("FUSEUNION_WIRE", wire)
    lower = arena.lower({"busy": File(b"x" * 5000), "directory/mode": File(b"y")})
    with arena.mount(lower, arguments=["--volatile"]) as mount, terminal(arena, mount) as top:
        top.wait(shows("^OPERATION +PER SECOND +AVERAGE +99 % +NO PYTHON"), "title")
        top.press("-")
        top.wait(shows(r"requests, 0\.5 s\)"), "shorter interval")

        def at_work(lines: list[str]) -> bool:
            with (mount / "busy").open("r+b", buffering=0) as file:
                for _ in range(20):
                    os.pwrite(file.fileno(), b"z" * 100, 9)
            return shows(r"^write +[\d.]+ +[\d.]+ [um]?s +< [\d.]+ [um]?s")(lines) and shows(r"^ +\d+  busy")(lines)

        top.wait(at_work, "writes")
        assert shows("4.9 KiB .*  busy  write by ")(top.screen.display)
        subprocess.run(["chmod", "600", mount / "directory/mode"], check=True)
        top.wait(shows(r"  directory/mode  setattr by chmod \(\d+\)"), "copy-up")
        lines = top.screen.display
        assert len(lines) == 24 and lines[0].startswith(f"{mount.merged}"[:40])
        assert lines[-1].startswith("q quit   space pause   s sort   + - interval")
        for size in ((40, 10), (120, 50), (20, 4), (80, 24)):
            top.resize(*size)
            top.wait(lambda lines, size=size: lines[size[1] - 1].startswith("q quit"[: size[0]]), f"picture of {size}")
        top.press("s")
        top.wait(shows(r"\(time, 0\.5 s\)"), "another sort")
        top.press(" ")
        top.wait(shows("^paused"), "pause")
        top.press("q")
        assert top.end() == 0


@pytest.mark.parametrize("how", ["^C", "^D", "TERM", "umount"])
@pytest.mark.actors("user")
def test_every_end(arena: Arena, how: str) -> None:
    """The terminal is as it was."""
    lower = arena.lower({"f": File(b"x")})
    with arena.mount(lower) as mount, terminal(arena, mount) as top:
        top.wait(shows("OPERATION"), "picture")
        if how == "TERM":
            top.process.send_signal(signal.SIGTERM)
            assert top.end() == 128 + signal.SIGTERM
        elif how == "umount":
            assert arena.place.fuseunion("umount", mount.merged).returncode == 0
            assert top.end() == 0
            assert f"the mount at '{mount.merged}' has ended".encode() in top.said.replace(b"\r\n", b"")
            mount.start()
        else:
            top.press({"^C": "\x03", "^D": "\x04"}[how])
            assert top.end() == {"^C": 130, "^D": 0}[how]


@pytest.mark.actors("user")
def test_colours(arena: Arena) -> None:
    """NO_COLOR is obeyed; a terminal that cannot move its cursor, and a pipe, are refused."""
    lower = arena.lower({"f": File(b"x")})
    colour = re.compile(rb"\x1b\[[0-9;]*3[0-9][0-9;]*m")
    with arena.mount(lower) as mount:
        for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
            with terminal(arena, mount, **environment) as top:
                top.wait(shows("OPERATION"), "picture")
                top.press("q")
                assert top.end() == 0
                assert bool(colour.search(top.said)) == coloured
        done = arena.place.fuseunion("top", mount.merged)
        assert done.returncode == 5 and done.stderr.startswith("fuseunion: this needs a terminal")
        with terminal(arena, mount, TERM="dumb") as top:
            top.wait(shows("fuseunion: this needs a terminal"), "refusal")
            assert top.process.wait(PATIENCE) == 5
