"""`fuseunion top MERGED`: a mount at work, until one has seen enough.

The terminal shows another screen meanwhile, and is left as it was whatever ends the command: a key, a signal, the end
of the mount.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console, ConsoleDimensions, Group
from rich.live import Live

from fuseunion.cli.commands.live.reaching import reach
from fuseunion.cli.commands.live.top.figures import figures
from fuseunion.cli.commands.live.top.screen import SORTS, Screen
from fuseunion.cli.parser import CommandParser
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux.proc import figures as process_figures
from fuseunion.linux.runtime.conversation import Conversation, RefusedError

HELP = """\
Usage: fuseunion top MERGED

Shows a mount at work, once a second: requests by kind, how many in a second and how long the answers take, which files
and directories are asked for most, and what is copied up, for whom. Mounts through FUSE only.

Keys: q ends it, space lets the picture stand still, s sorts the requests by number, by time or by name, + and - show a
new picture less or more often.

Options:
  -h, --help   print this help

Examples:
  fuseunion top ~/merged
"""

_INTERVALS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_LOOK = 0.2
"""Seconds after which a terminal of another size is noticed."""


def main(arguments: list[str]) -> int:
    """Show it.

    Raises:
        UserError: USAGE; LAYERS when nothing of ours is at MERGED; UNAVAILABLE where nobody can be asked, or there is
            no terminal.
    """
    parser = CommandParser("top", HELP)
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) != 1:
        raise UserError("give one mounted directory: fuseunion top MERGED")
    (given,) = asked.operands
    status, conversation = reach(given)
    console = Console(highlight=False)
    screen = Screen(status.merged, status.reading or "")
    try:
        with conversation:
            if not (sys.stdin.isatty() and console.is_terminal) or console.is_dumb_terminal:
                raise UserError(
                    "this needs a terminal that can move its cursor; else: fuseunion status, fuseunion log",
                    ExitCode.UNAVAILABLE,
                )
            with (
                _signals() as signals,
                _keys() as keyboard,
                Live(console=console, screen=True, auto_refresh=False) as live,
            ):
                ended = _watch(live, screen, conversation, keyboard, signals, status.pid)
    except RefusedError as refusal:
        raise UserError(refusal.message, ExitCode.FAILURE) from None
    if ended:
        print(f"the mount at '{given}' has ended")
    return ExitCode.OK


def _watch(
    live: Live, screen: Screen, conversation: Conversation, keyboard: int, signals: int, pid: int | None
) -> bool:
    """Show what comes, until a key ends it; returns True when the mount has ended instead.

    Raises:
        KeyboardInterrupt, SystemExit: for a signal.
    """
    _begin(conversation, screen)
    while True:
        shown = _show(live, screen)
        while True:
            ready, _, _ = select.select([keyboard, signals, conversation.fileno()], [], [], _LOOK)
            if ready or os.get_terminal_size() != shown:
                break
        if signals in ready:
            _end(os.read(signals, 1)[0])
        if conversation.fileno() in ready:
            try:
                records = conversation.receive()
            except ConnectionError:
                records = None
            if records is None:
                return True
            screen.memory = process_figures.of(pid).memory if pid else None
            screen.take(figures(records, time.monotonic()))
        if keyboard in ready:
            for key in os.read(keyboard, 64).decode(errors="replace"):
                if key in "qQ\x03\x04":
                    return False
                if _press(screen, key):
                    conversation.again()
                    _begin(conversation, screen)


def _begin(conversation: Conversation, screen: Screen) -> None:
    conversation.send("top", milliseconds=int(screen.interval * 1000))


def _press(screen: Screen, key: str) -> bool:
    """Do what a key is for; returns whether the daemon has to be asked anew."""
    if key == " ":
        screen.paused = not screen.paused
    elif key == "s":
        names = list(SORTS)
        screen.sort = names[(names.index(screen.sort) + 1) % len(names)]
    elif key in "+-":
        place = _INTERVALS.index(screen.interval) + (1 if key == "+" else -1)
        before, screen.interval = screen.interval, _INTERVALS[min(max(place, 0), len(_INTERVALS) - 1)]
        return screen.interval != before
    return False


def _show(live: Live, screen: Screen) -> os.terminal_size:
    """Draw the picture; returns for which size."""
    size = os.get_terminal_size()
    live.console.size = ConsoleDimensions(*size)  # not what COLUMNS and LINES said when the shell began
    live.update(Group(*screen.lines(*size)), refresh=True)
    return size


@contextmanager
def _signals() -> Iterator[int]:
    """What ends the command, as bytes to be read: an exception anywhere could come where somebody ignores it, or in the
    middle of a picture."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def note(number: int, _frame: object) -> None:
        os.write(writer, bytes([number]))

    handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    # A stopped command would leave the other screen behind.
    handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        yield reader
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


@contextmanager
def _keys() -> Iterator[int]:
    """The keyboard, each key at once and not shown."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)


def _end(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
