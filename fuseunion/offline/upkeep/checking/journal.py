"""What `check --repair` writes down before it changes anything: `.NAME.fuseunion-repairs/journal`, beside the work
directory of the upper, of which NAME is the name; beside the upper where that has the default one.

One JSON object in a line, only ever added to:

    {"repair": "begun", "upper": PATH, "inode": N, "time": SECONDS}
    {"step": 1, "code": ..., "path": ..., "in_work": ..., "does": ..., "had": ...}     on disk before the step is taken
    {"done": 1}                          or {"failed": 1, "why": ...}, once it was
    {"repair": "finished"}               all that was done is on disk

The steps are on disk by some dozens at a time, before the first of them is taken: a disk that has to be waited for with
each would make the repair of ten thousand whiteouts take minutes. What is still to be done, the upper itself says
(findings.py); the journal says what was there, and that a repair was cut off.

A journal that has more than 4 MiB when a repair begins, or 32 MiB within one (some 150,000 steps), becomes
`journal.old`, in place of the one before. The directory is closed to others, and nothing is believed that is not the
user's own (offline/beside.py).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import IO, NamedTuple

from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import owned, syscalls
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.offline import beside
from fuseunion.offline.upkeep.checking.described import Had, text
from fuseunion.offline.upkeep.checking.findings import Finding
from fuseunion.offline.upkeep.holding import HeldUpper

_JOURNAL, _OLD = "journal", "journal.old"
_LONG, _FULL = 4 << 20, 32 << 20
"""Bytes after which another file is begun: for another repair, and within one."""
_LONGEST_LINE = 1 << 20
_LATEST = 1 << 40
"""Seconds since the epoch, for which there is a date."""
_STEPS, _BYTES = 64, 1 << 20
"""What goes to the disk at once, at most."""


class CutOff(NamedTuple):
    """A repair that did not come to its end.

    Attributes:
        since: when it began, in seconds since the epoch.
        steps: how many it had written down.
        taken: how many of them were taken, with whatever success.
    """

    since: int
    steps: int
    taken: int


class RepairJournal:
    """The journal of one upper, which nobody else uses.

    Args:
        held: the upper.
    """

    def __init__(self, held: HeldUpper) -> None:
        self._upper = os.path.realpath(held.path)
        self._inode = os.fstat(held.root_fd).st_ino
        self._place = beside.place(held.path if held.default_work else held.work_path, "repairs")
        self._fd: int | None = None
        self._steps = 0
        self._has_begun = False

    @property
    def path(self) -> str:
        """Where the journal is, or would be."""
        return os.path.join(self._place, _JOURNAL)

    # -- reading -----------------------------------------------------------------------------------------------------

    def objection(self) -> str | None:
        """Why it is not believed; None where it is, or where there is none."""
        with ExitStack() as stack:
            try:
                self._file(stack)
            except UserError as error:
                return str(error)
        return None

    def exists(self) -> bool:
        """Whether there is one that says something. Raises as `cut_off`."""
        with ExitStack() as stack:
            return any(self._lines(stack))

    def cut_off(self) -> CutOff | None:
        """The last repair of this upper, where it was cut off.

        Raises:
            UserError: LAYERS for a journal that is not the user's alone, or is none.
        """
        begun: Had | None = None
        steps = taken = 0
        with ExitStack() as stack:
            for line in self._lines(stack):
                steps += line.startswith(b'{"step"')
                taken += line.startswith((b'{"done"', b'{"failed"'))
                if not line.startswith(b'{"repair"'):
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue  # a kill has cut it off
                if record["repair"] == "finished":
                    begun = None
                else:
                    begun, steps, taken = record, 0, 0
        if begun is None or begun.get("inode") != self._inode:
            return None  # another directory has taken the place of that upper, as `restore` does
        since = begun.get("time")
        return CutOff(since if isinstance(since, int) and 0 <= since < _LATEST else 0, steps, taken)

    def _file(self, stack: ExitStack) -> IO[bytes] | None:
        directory = beside.found(self._place)
        if directory is None:
            return None
        stack.callback(os.close, directory)
        try:
            return stack.enter_context(open(owned.open_file(_JOURNAL, directory), "rb"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from None

    def _lines(self, stack: ExitStack) -> Iterator[bytes]:
        file = self._file(stack)
        return iter(partial(file.readline, _LONGEST_LINE), b"") if file is not None else iter(())

    def _unusable(self, error: OSError) -> UserError:
        return UserError(
            f"'{self.path}' cannot be used: {error.strerror}; it must be yours alone; move it away", ExitCode.LAYERS
        )

    # -- writing -----------------------------------------------------------------------------------------------------

    def steps(self, findings: Iterable[Finding]) -> Iterator[tuple[int, Finding, OSError | None]]:
        """Write down what is to be repaired.

        Yields:
            The number of a step, which is on disk now, and its finding; and why it cannot be described, and is not to
            be taken.

        Raises:
            UserError: LAYERS, FAILURE: the journal cannot be made or written. What was not yielded is not to be done.
        """
        waiting: list[tuple[int, Finding, OSError | None]] = []
        lines: list[bytes] = []
        for finding in findings:
            assert finding.repair is not None
            try:
                had, problem = finding.repair.had(), None
            except OSError as error:
                had, problem = {}, error
            self._steps += 1
            lines.append(_line(_step(self._steps, finding, had)))
            waiting.append((self._steps, finding, problem))
            if len(waiting) == _STEPS or sum(map(len, lines)) > _BYTES:
                self._write_steps(lines)
                yield from waiting
                waiting, lines = [], []
        if waiting:
            self._write_steps(lines)
            yield from waiting

    def note(self, step: int, error: OSError | None) -> None:
        """A step was taken, or could not be.

        Raises:
            UserError: FAILURE.
        """
        self._write([_line({"done": step} if error is None else {"failed": step, "why": error.strerror})])

    def finish(self) -> None:
        """The repair has come to its end, and is on disk. Says nothing where there was none.

        Raises:
            UserError: FAILURE.
        """
        if self._fd is not None or self.cut_off() is not None:
            self._write([_line({"repair": "finished"})], wait=True)
        self.close()

    def close(self) -> None:
        """Let go of it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write_steps(self, lines: list[bytes]) -> None:
        """Write down steps, after whose they are; in a new file, where this one is full."""
        if self._fd is None or os.fstat(self._fd).st_size > _FULL:
            self.close()
            begun = {"repair": "begun", "upper": self._upper, "inode": self._inode, "time": int(time.time())}
            lines = [_line(begun), *lines]
        self._write(lines, wait=True)
        self._has_begun = True

    def _write(self, lines: list[bytes], *, wait: bool = False) -> None:
        try:
            if self._fd is None:
                self._fd = self._open()
            _append(self._fd, b"".join(lines))
            if wait:
                os.fdatasync(self._fd)
        except OSError as error:
            raise UserError(
                f"the journal '{self.path}' cannot be written: {error.strerror}; nothing is repaired without it",
                ExitCode.FAILURE,
            ) from None

    def _open(self) -> int:
        """The journal, open for adding to it."""
        directory = beside.found(self._place)
        if directory is None:
            beside.make(self._place)
            directory = beside.found(self._place)
            assert directory is not None
            syscalls.syncfs(directory)  # its own name too has to be on disk
        try:
            try:
                fd = owned.open_file(_JOURNAL, directory)
            except FileNotFoundError:
                return _new(directory)
            except OSError as error:
                raise self._unusable(error) from None
            try:
                if os.fstat(fd).st_size > (_FULL if self._has_begun else _LONG):
                    os.rename(_JOURNAL, _OLD, src_dir_fd=directory, dst_dir_fd=directory)
                    return _new(directory)
                return RealObject(fd).open(os.O_RDWR | os.O_APPEND)
            finally:
                os.close(fd)
        finally:
            os.close(directory)


def _new(directory: int) -> int:
    fd = owned.new_file(_JOURNAL, directory)
    beside.sync(directory)
    return fd


def _append(fd: int, data: bytes) -> None:
    """Add lines, all of them or none, so that a full disk leaves no part of one."""
    end = os.fstat(fd).st_size
    if end and os.pread(fd, 1, end - 1) != b"\n":
        data = b"\n" + data  # after what a kill left
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.pwrite(fd, rest, end + len(data) - len(rest)) :]
    except OSError:
        os.ftruncate(fd, end)
        raise


def _step(number: int, finding: Finding, had: Had) -> Had:
    assert finding.repair is not None
    return {
        "step": number,
        "code": finding.code,
        "path": text(finding.path),
        "in_work": finding.in_work,
        "does": finding.repair.does,
        "had": had,
    }


def _line(record: Had) -> bytes:
    return json.dumps(record).encode() + b"\n"
