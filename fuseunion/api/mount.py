"""`fuseunion.mount`: a union for the length of a block, or of the program.

Everything here runs in the user's program, so it imports little, starts no thread, and leaves signals and limits alone.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from fuseunion.api.changes import Changes
from fuseunion.api.talk import Line
from fuseunion.errors import ExitCode, UserError

AnyPath = str | os.PathLike[str]

Value = bool | int | float | str | os.PathLike[str] | Iterable[str] | None
"""Of an option: True for one without a value, a list for one that may be repeated, False and None for none."""

_START = "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); from fuseunion.api.keeper import main; main()"
"""The keeper has the modules that the program has, wherever they were found."""

_NOT_HERE = {"foreground", "debug", "ephemeral", "help", "version", "f", "d", "h", "r", "o"}
"""Options of the command line that mean something else here, and short ones."""


class Stats(NamedTuple):
    """How a mount is doing.

    Attributes:
        engine: "fuse", "kernel" or "ranch".
        pid: of the daemon; None with an engine that has none, as the next two.
        inodes: how many it knows.
        open_files: how many files and directories are open in the mount.
    """

    engine: str
    pid: int | None
    inodes: int | None
    open_files: int | None


def mount(
    lower: AnyPath | Sequence[AnyPath],
    upper: AnyPath | None = None,
    merged: AnyPath | None = None,
    **options: Value,
) -> Mount:
    """Show a lower tree with a writable upper on top; ends with the block, `close`, the interpreter or the process.

    Args:
        lower: what is shown and never written; several of them topmost first.
        upper: gets the changes, and is made if it is missing. None, without `read_only=True`: changes are kept beside
            the mount and thrown away with it.
        merged: an existing directory to see the union at. None: a new one, which is gone afterwards.
        options: those of the command line (docs/options.md) in Python's spelling: `engine="kernel"`, `fakeroot=True`,
            `uid_map=["0:1000:1"]`, `options="noacl"`.
    Raises:
        UserError: with the message and the exit code of the command line; nothing is mounted.
    """
    return Mount(lower, upper, merged, options)


class Mount:
    """One mount, made by `mount()`. May be used from several threads, one request at a time.

    A child that the program forks does not own the mount: there `close` and the end of the block do nothing.

    Attributes:
        merged: where the union is.
        upper: where the changes are; None when it is read-only.
        engine: "fuse", "kernel" or "ranch".
        messages: what the command said, such as which engine was taken and why.
    """

    def __init__(
        self,
        lower: AnyPath | Sequence[AnyPath],
        upper: AnyPath | None,
        merged: AnyPath | None,
        options: Mapping[str, Value],
    ) -> None:
        lowers = [lower] if isinstance(lower, str | os.PathLike) else list(lower)
        if not lowers:
            raise UserError("give at least one lower directory")
        request = {
            "lowers": [absolute(path) for path in lowers],
            "upper": None if upper is None else absolute(upper),
            "merged": None if merged is None else absolute(merged),
            "read_only": bool(options.get("read_only")),
            "options": arguments(options, "mount"),
        }
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._line, keeper = _start_keeper()
        # Also at the end of the interpreter, and when the last reference goes.
        self._end = weakref.finalize(self, _end, self._line, keeper, self._pid)
        try:
            made = self._ask("mount", parent=self._pid, **request)
        except BaseException:
            self._end()
            raise
        self.merged = Path(made["merged"])
        self.upper = None if made["upper"] is None else Path(made["upper"])
        self.engine: str = made["engine"]
        self.messages: list[str] = made["messages"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __fspath__(self) -> str:
        """Where the union is, so that a mount can be given as a path."""
        return str(self.merged)

    def __truediv__(self, name: AnyPath) -> Path:
        """A path in the union."""
        return self.merged / name

    def __repr__(self) -> str:
        state = f"at '{self.merged}' by {self.engine}" if self._end.alive else "closed"
        return f"<fuseunion.Mount {state}>"

    def close(self) -> None:
        """Write everything out and unmount; does nothing the second time.

        A mount that is still used, by an open file or a working directory, leaves the tree all the same, and ends with
        its last user.

        Raises:
            UserError: FAILURE: what was written could not be put on disk, or it cannot be unmounted.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            if not self._end.alive:
                return
            try:
                self._line.ask(do="close")
            finally:
                self._end()

    def reset(self) -> None:
        """Drop all changes, of a mount that was made without an upper: afterwards everything is as in the lowers.

        Raises:
            UserError: USAGE for a mount with an upper, or a read-only one; BUSY where something in it is open or
                somebody's working directory, with nothing dropped.
        """
        self._ask("reset")

    def diff(self) -> Changes:
        """What the upper changes of the lowers. A ranch is collected first.

        Raises:
            UserError: FAILURE where a layer cannot be read.
        """
        found = self._ask("diff")
        return Changes(tuple(found["added"]), tuple(found["modified"]), tuple(found["deleted"]))

    def stats(self) -> Stats:
        """How the mount is doing.

        Raises:
            UserError: FAILURE where its daemon does not answer.
        """
        return Stats(**self._ask("stats"))

    def _ask(self, request: str, **more: Any) -> Any:
        if os.getpid() != self._pid:
            raise UserError("this mount belongs to the process that made it")
        with self._lock:
            if not self._end.alive:
                raise UserError("this mount is closed")
            return self._line.ask(do=request, **more)


def absolute(path: AnyPath) -> str:
    """A path that means the same to other processes.

    Raises:
        UserError: USAGE: it is empty.
    """
    text = os.fspath(path)
    if not text:
        raise UserError("a directory is empty; is a variable not set?")
    return os.path.abspath(text)


def arguments(options: Mapping[str, Value], function: str) -> list[str]:
    """The options as the command line has them.

    Args:
        function: what they were given to.

    Raises:
        UserError: USAGE: one that makes no sense here. The command line judges the others.
    """
    words: list[str] = []
    for name, value in options.items():
        if name in _NOT_HERE:
            raise UserError(f"the option {name}= is not one of fuseunion.{function}()")
        word = "--" + name.replace("_", "-")
        if value is True:
            words.append(word)
        elif isinstance(value, str | os.PathLike):
            words += [word, os.fspath(value)]
        elif isinstance(value, int | float):
            words += [word, str(value)] if value is not False else []
        elif value is not None:
            words += [part for each in value for part in (word, each)]
    return words


def _start_keeper() -> tuple[Line, subprocess.Popen[bytes]]:
    if not sys.executable:
        raise UserError("sys.executable is empty: the process that keeps a mount cannot be started")
    ours, theirs = socket.socketpair()
    path = [place for place in sys.path if os.path.isabs(place)]
    with theirs:
        try:
            keeper = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, json.dumps(path)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            ours.close()
            raise UserError(f"cannot start '{sys.executable}': {error.strerror}", ExitCode.FAILURE) from None
    return Line(ours), keeper


def _end(line: Line, keeper: subprocess.Popen[bytes], owner: int) -> None:
    """Let go: the keeper unmounts when the talk ends."""
    line.close()
    if os.getpid() == owner:
        keeper.wait()
