"""The process that keeps one mount: makes it, takes it away when the program that wanted it has gone.

Everything that the command line does it does as the command line: in a child made by fork, which calls the command and
whose stderr becomes the message. So the keeper itself holds no lock that the next mount would miss, and a mount costs
no start of an interpreter. For throw-away mounts it also imports beforehand what a daemon imports, so that a reset,
which is an unmount and a mount over an empty upper, takes milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from fuseunion.api.talk import Line
from fuseunion.cli.arguments import parse
from fuseunion.cli.main import run
from fuseunion.core.disk import trees
from fuseunion.core.disk.layer import Layer
from fuseunion.engines import registry
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import owned
from fuseunion.mounting.options import EngineChoice
from fuseunion.mounting.options.grammar import escape
from fuseunion.offline.layers import changes, opening

_PREFIX = "fuseunion: "


_FIELDS = {
    changes.Kind.ADDED: "added",
    changes.Kind.MODIFIED: "modified",
    changes.Kind.REPLACED: "modified",
    changes.Kind.DELETED: "deleted",
}
"""Where the program that asks has a change (changes.Changes)."""

_ENDING = (signal.SIGTERM, signal.SIGHUP)
"""They end the keeper as the end of the program does: between two requests, so that no mount is left half made."""


def main() -> None:
    """Serve the program at the other end of the standard input, until it has gone."""
    line = Line(socket.socket(fileno=os.dup(0)))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    woken, wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wakes)
    for number in _ENDING:
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the program, which ends the mount if it ends
    keeper = Keeper(line)
    try:
        keeper.serve(woken)
    finally:
        keeper.close()


class Keeper:
    """One mount and what is asked of it.

    Args:
        line: to the program.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._base: str | None = None
        self._merged = ""
        self._upper: str | None = None
        self._throw_away = False
        self._fresh: tuple[Any, ...] | None = None
        self._engine: EngineChoice | None = None
        self._mount: list[str] = []
        self._layers: list[int] = []
        self._requests: dict[str, Callable[..., Any]] = {
            "mount": self._make,
            "reset": self._reset,
            "diff": self._diff,
            "stats": self._stats,
            "close": self._take_down,
        }

    def serve(self, woken: int) -> None:
        """Answer until the program closes its end, ends, or was never there.

        Args:
            woken: readable when the keeper is to end for another reason.
        """
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        poll.register(woken, select.POLLIN)
        program: int | None = None
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if program in ready or woken in ready:
                return
            request = self._line.hear()
            if request is None:
                return
            if program is None:
                try:
                    program = os.pidfd_open(request.pop("parent"))
                except ProcessLookupError:
                    return
                poll.register(program, select.POLLIN)
            with contextlib.suppress(ConnectionError):
                self._answer(request)

    def _answer(self, request: dict[str, Any]) -> None:
        name = request.pop("do")
        call = self._requests[name]
        try:
            if self._engine is None and name in ("diff", "stats"):
                raise UserError("a reset has failed, and nothing is mounted; reset it again", ExitCode.FAILURE)
            value = call(**request)
        except UserError as error:
            self._line.say(error=error.message, code=error.exit_code)
        except OSError as error:
            where = f"'{os.fsdecode(error.filename)}': " if error.filename is not None else ""
            self._line.say(error=f"{where}{error.strerror or error}", code=ExitCode.FAILURE)
        except Exception as error:  # noqa: BLE001 - the last line of defence: whatever it is has to reach the program
            self._line.say(error=f"{type(error).__name__}: {error}", code=ExitCode.FAILURE)
        else:
            self._line.say(value=value)

    # -- requests ----------------------------------------------------------------------------------------------------

    def _make(
        self, *, lowers: list[str], upper: str | None, merged: str | None, read_only: bool, options: list[str]
    ) -> dict[str, Any]:
        self._throw_away = upper is None and not read_only
        if self._throw_away or merged is None:
            self._base = os.path.realpath(tempfile.mkdtemp(prefix="fuseunion-"))
        if self._throw_away:
            assert self._base is not None
            upper = os.path.join(self._base, "upper")
            options = [*options, "--volatile"]
        if merged is None:
            assert self._base is not None
            merged = os.path.join(self._base, "merged")
            os.mkdir(merged)
        self._merged, self._upper = merged, upper
        layers = ":".join(map(escape, lowers))
        self._mount = [*options, "--", layers, *([upper] if upper is not None and not read_only else []), merged]
        if self._throw_away:
            self._load(parse(self._mount, "fuseunion").engine)
        # Before the mount may cover them, for `diff`.
        self._layers = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in lowers if _is_there(path)]
        said = self._mounted()
        return {
            "merged": merged,
            "upper": None if read_only else upper,
            "engine": self._engine and self._engine.value,
            "messages": said,
        }

    @staticmethod
    def _load(asked: EngineChoice) -> None:
        """Import what the children need, so that not each of them does; of the engines the one that is tried first."""
        import fuseunion.cli.commands.umount
        import fuseunion.cli.mount
        import fuseunion.engines.choose  # noqa: F401

        first, *_ = registry.order(asked)
        registry.load(first).preload()

    def _mounted(self) -> list[str]:
        said = _command(self._mount)
        found = registry.find(self._merged)
        if found is None:
            raise UserError(f"the mount at '{self._merged}' went away at once", ExitCode.FAILURE)
        self._engine = found[0].choice
        self._fresh = self._upper_as_it_is() if self._throw_away else None
        return said

    def _upper_as_it_is(self) -> tuple[Any, ...] | None:
        """The attributes of an upper that holds nothing; None where nothing can be said of it, as with a ranch."""
        assert self._upper is not None
        if self._engine is EngineChoice.RANCH or os.listdir(self._upper):
            return None
        st = os.stat(self._upper)
        attributes = [(name, os.getxattr(self._upper, name)) for name in sorted(os.listxattr(self._upper))]
        return st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, attributes

    def _reset(self) -> None:
        if not self._throw_away or self._base is None or self._upper is None:
            what = f"upper '{self._upper}' is yours" if self._upper else "it is read-only"
            raise UserError(f"reset is for a mount that was made without an upper; {what}")
        if self._engine is not None:
            if self._fresh is not None:
                self._settle()
            if self._fresh is not None and self._fresh == self._upper_as_it_is():
                return  # nothing was changed
            _command(self._umount())
            self._engine = None
        old = os.path.join(self._base, "old")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._upper, old)
        self._mounted()
        _remove(old)

    def _umount(self) -> list[str]:
        discard = ["--discard"] if self._throw_away and self._engine is EngineChoice.RANCH else []
        return ["umount", *discard, "--", self._merged]

    def _diff(self) -> dict[str, list[str]]:
        if self._upper is None or not self._layers:
            return {field: [] for field in _FIELDS.values()}
        self._settle()
        options = parse(self._mount, "fuseunion")
        found: dict[str, list[str]] = {field: [] for field in _FIELDS.values()}
        upper = os.open(self._upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with (
                opening.read_only(self._layers, options) as before,
                opening.shared(upper, self._layers, options) as view,
            ):
                for change in changes.changes(before, view):
                    found[_FIELDS[change.kind]].append(os.fsdecode(change.path))
        finally:
            os.close(upper)
        return {field: sorted(paths) for field, paths in found.items()}

    def _settle(self) -> None:
        """Bring into the upper what only the kernel, or the tree of links, has of it."""
        if self._engine is EngineChoice.RANCH:
            _command(["sync", "--", self._merged])
        elif self._engine is EngineChoice.FUSE:
            from fuseunion.engines.fuse.asking import questions

            questions.write_out(self._merged, questions.FSYNC)

    def _stats(self) -> dict[str, Any]:
        assert self._engine is not None, "it is mounted"
        numbers: dict[str, int | None] = {"pid": None, "inodes": None, "open_files": None}
        if self._engine is EngineChoice.FUSE:
            from fuseunion.engines.fuse.asking import questions

            inodes, opened = os.getxattr(self._merged, questions.COUNTS).split()
            pid = os.getxattr(self._merged, questions.PID)
            numbers = {"pid": int(pid), "inodes": int(inodes), "open_files": int(opened)}
        return {"engine": self._engine.value, **numbers}

    # -- the end -----------------------------------------------------------------------------------------------------

    def _take_down(self) -> None:
        """Unmount; what is used leaves the tree, and ends with its last user."""
        if self._engine is None:
            return
        try:
            _command(self._umount())
        except UserError as error:
            if registry.find(self._merged) is not None:
                if error.exit_code is not ExitCode.BUSY:
                    raise
                command, *rest = self._umount()
                _command([command, "--lazy", *rest])
            # Else somebody has taken it away already.
        self._engine = None

    def close(self) -> None:
        """Take the mount down if it is there, and remove what was made for it."""
        try:
            self._take_down()
        except (UserError, OSError):
            pass  # nobody is there to be told; what is below a mount that stays must not be removed
        else:
            if self._base is not None:
                _remove(self._base)


def _is_there(path: str) -> bool:
    return os.path.isdir(path)  # the command says what is wrong with one that is not


def _remove(path: str) -> None:
    """Remove a directory of ours with all that is in it, closed directories too."""
    try:
        fd = owned.open_directory(path)
    except FileNotFoundError:
        return
    layer = Layer(fd, writable=True, label=path)
    try:
        trees.empty(layer.root)
        os.rmdir(path)
    finally:
        layer.close()


def _command(arguments: list[str]) -> list[str]:
    """Run a command as `fuseunion ARGUMENTS` would.

    Returns:
        What it said on stderr, line by line, without the name of the program.
    Raises:
        UserError: it failed; with its last line, and its exit code.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_the_command(arguments, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read().decode(errors="surrogateescape")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = [line.removeprefix(_PREFIX) for line in text.splitlines()]
    if code:
        message = said[-1] if said else f"it ended with status {code}"
        raise UserError(message, ExitCode(code) if code in set(ExitCode) else ExitCode.FAILURE)
    return said


def _be_the_command(arguments: list[str], stderr: int) -> None:
    """Never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (*_ENDING, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(stderr, 2)
        code = run(["fuseunion", *arguments])
        sys.stderr.flush()
    finally:
        os._exit(code)
