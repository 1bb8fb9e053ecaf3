"""Where one contestant plays one row: layers, a mount, and the ways to measure.

A ground is the lower of a row, shared by all contestants; a stage is on top of it, for one sample of one contestant.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from bench.contestants import Contestant, Layers
from bench.row import Failed, Measurement, Unit

Word = str | int | Path


@dataclass(frozen=True, slots=True)
class Tools:
    """What every measurement uses.

    Attributes:
        loops: the compiled bench/loops.c.
        timeout: seconds after which a measured process is given up.
    """

    loops: Path
    timeout: float

    def run(
        self, *words: Word, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> list[tuple[float, int]]:
        """Run loops with a word and its arguments; see `measured`."""
        return self.measured(self.loops, *words, cwd=cwd, env=env)

    def measured(
        self, *command: Word, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> list[tuple[float, int]]:
        """Run a program that measures itself.

        Returns:
            The seconds and what was found, of each line it wrote.
        Raises:
            Failed: it did not end with 0, or not in time.
        """
        # A daemon that is started inherits stderr, and would keep a pipe open.
        with tempfile.TemporaryFile() as errors:
            try:
                done = subprocess.run(
                    [str(word) for word in command],
                    cwd=cwd,
                    env={**os.environ, **(env or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    timeout=self.timeout,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise Failed(f"{' '.join(map(str, command[1:4]))} did not end within {self.timeout:g} s") from None
            if done.returncode != 0:
                errors.seek(0)
                text = errors.read().decode(errors="replace").strip().splitlines()
                raise Failed("; ".join(dict.fromkeys([*text[:1], *text[-1:]]))[:300] or f"exit {done.returncode}")
        return [(float(seconds), int(found)) for seconds, found in map(str.split, done.stdout.splitlines())]

    def look(self, path: Path) -> str:
        """What contestants are compared by: the content of a file, or how much is beneath a directory."""
        if path.is_file():
            [(size, total)] = self.run("sum", path)
            return f"{size:.0f} bytes with sum {total:x}"
        [(size, names)] = self.run("count", path)
        return f"{names} names, {size:.0f} bytes"


@dataclass(slots=True)
class Ground:
    """The lowers of a row, and what it needs beside them.

    Attributes:
        lowers: from top to bottom; `prepare` fills in.
        kit: a directory for archives, sources and the like.
    """

    place: Path
    tools: Tools
    lowers: list[Path] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.place.mkdir()
        self.kit.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        remove(self.place)

    @property
    def kit(self) -> Path:
        """See the class."""
        return self.place / "kit"

    def lower(self) -> Path:
        """One more lower, beneath those that are there."""
        path = self.place / str(len(self.lowers))  # short: mount(2) takes 4095 bytes for all
        path.mkdir()
        self.lowers.append(path)
        return path

    def tree(self, directory: Path, files: int, per_directory: int = 50, size: int = 1000) -> None:
        """Make a tree of small files in `directory`, which may be there."""
        self.tools.run("tree", directory, files, per_directory, size)


def remove(path: Path) -> None:
    """Remove a tree; rm(1) is faster than Python with a million files."""
    subprocess.run(["rm", "-rf", "--one-file-system", path], check=True)


def processes() -> set[int]:
    """Who lives in this process namespace."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            # It may end between the listing and the look.
            with contextlib.suppress(OSError):
                state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX":
                    found.add(int(name))
    return found


@dataclass(slots=True)
class Stage:
    """One contestant on one ground. Leaving it ends what it mounted, and every process that it started.

    Attributes:
        copied: whether the bare directory has to be a copy of the lower.
        mounts: the mounts there are, with the processes that serve each.
    """

    place: Path
    contestant: Contestant
    ground: Ground
    tools: Tools
    copied: bool
    mounts: dict[Path, set[int]] = field(default_factory=dict)
    _before: set[int] = field(default_factory=set)

    def __enter__(self) -> Self:
        self._before = processes()
        self.place.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        for merged in list(self.mounts):
            try:
                self.unmount(merged)
            except Failed:
                subprocess.run(["umount", "-l", merged], stderr=subprocess.DEVNULL, check=False)
        # Nobody else is in this process namespace.
        for pid in processes() - self._before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        remove(self.place)

    # -- the mount -----------------------------------------------------------------------------------------------------

    @property
    def merged(self) -> Path:
        """Where the row works."""
        return self.place / "0" / "merged"

    @property
    def kit(self) -> Path:
        """What the row prepared beside the lowers."""
        return self.ground.kit

    def scratch(self, name: str) -> Path:
        """A directory of this sample on the same filesystem, outside the union."""
        path = self.place / name
        path.mkdir(exist_ok=True)
        return path

    def mount(self, number: int = 0) -> float:
        """Mount; each number has an upper of its own, and keeps it from one mount to the next.

        Returns:
            The seconds from exec until the mount answered.
        Raises:
            Failed: it could not.
        """
        layers = self._layers(number)
        if self.contestant.mounts is None:
            return self._lay_out(layers)
        before = processes()
        try:
            [(seconds, _)] = self.tools.run("mount", layers.merged, *self.contestant.mounts(layers))
        finally:
            # It may be mounted and not answer.
            self.mounts[layers.merged] = processes() - before
        return seconds

    def enter(self, *command: Word) -> float:
        """Run a command in the union, with all that this takes; the seconds from exec until its first output."""
        [(seconds, _)] = self.tools.run("prompt", *self.contestant.entering(self._layers(0)), *command)
        return seconds

    def _layers(self, number: int) -> Layers:
        base = self.place / str(number)
        names = ("upper", "work", "merged")
        for name in names:
            (base / name).mkdir(parents=True, exist_ok=True)
        return Layers(tuple(self.ground.lowers), *(base / name for name in names))

    def _lay_out(self, layers: Layers) -> float:
        """The bare directory: a copy of the lowers, or the one lower itself where nothing is changed."""
        if self.copied or len(layers.lowers) > 1:
            for lower in reversed(layers.lowers):
                subprocess.run(["cp", "-a", f"{lower}/.", layers.merged], check=True)
        else:
            subprocess.run(["mount", "--bind", layers.lowers[0], layers.merged], check=True)
            self.mounts[layers.merged] = set()
        return 0.0

    def unmount(self, merged: Path | None = None) -> float:
        """Unmount; the seconds until the command has returned and the daemon has gone."""
        merged = merged or self.merged
        pids = ",".join(map(str, self.mounts.pop(merged))) or "none"
        [(seconds, _)] = self.tools.run("end", pids, *self.contestant.unmounts(merged))
        return seconds

    # -- measuring -----------------------------------------------------------------------------------------------------

    def timed(
        self,
        part: str,
        *command: Word,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        after: Path | None = None,
    ) -> Measurement:
        """A program from its start to its end.

        Args:
            after: compare what this file or directory is then, instead of the lines that the program wrote.
        """
        [(seconds, lines)] = self.tools.run("run", *command, cwd=cwd, env=env)
        return Measurement(part, seconds, self.tools.look(after) if after else f"{lines} lines")

    def looped(self, parts: tuple[str, ...], *words: Word, after: Path | None = None) -> Iterator[Measurement]:
        """A loop of bench/loops.c, which writes a line for each part."""
        yield from self._reported(parts, self.tools.run(*words), after)

    def reported(self, parts: tuple[str, ...], *command: Word, after: Path | None = None) -> Iterator[Measurement]:
        """A program that measures itself, as the loops do."""
        yield from self._reported(parts, self.tools.measured(*command), after)

    def _reported(
        self, parts: tuple[str, ...], results: list[tuple[float, int]], after: Path | None
    ) -> Iterator[Measurement]:
        extra = f", {self.tools.look(after)}" if after else ""
        for part, (seconds, found) in zip(parts, results, strict=True):
            yield Measurement(part, seconds, f"{found}{extra}")

    @contextlib.contextmanager
    def watched(self, directory: Path) -> Iterator[list[float]]:
        """Have somebody else look for names in a directory; the list gets the longest wait when the block ends."""
        longest: list[float] = []
        watcher = subprocess.Popen(
            [self.tools.loops, "watch", directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert watcher.stdout is not None
            watcher.stdout.readline()
            yield longest
            output, _ = watcher.communicate("", timeout=self.tools.timeout)
            longest.append(float(output.split()[0]))
        except (subprocess.TimeoutExpired, IndexError) as error:
            raise Failed(f"an unrelated stat failed, or never ended: {error}") from None
        finally:
            watcher.kill()
            watcher.wait()

    # -- the daemon ----------------------------------------------------------------------------------------------------

    def memory(self, merged: Path | None = None) -> int:
        """The bytes that the daemons of a mount hold, shared pages divided (proc(5), smaps_rollup: Pss)."""
        return 1024 * sum(_pss(pid) for pid in self._daemons(merged))

    def descriptors(self) -> int:
        """How many descriptors the daemons hold."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self._daemons(None))

    def _daemons(self, merged: Path | None) -> set[int]:
        pids = self.mounts[merged or self.merged] & processes()
        if not pids:
            raise Failed("there is no daemon")
        return pids

    def measured_memory(self, part: str, base: int = 0, for_each: int = 1, found: str | None = None) -> Measurement:
        """The memory of the daemon beyond `base`, for each of so many."""
        return Measurement(part, (self.memory() - base) / for_each, found, Unit.BYTES)


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            return int(value.split()[0])
    raise KeyError("Pss")


def find_program(name: str) -> str | None:
    """Where a program is, those that only root's PATH has included."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
