"""Mounts that end clean: of the product, and of the kernel's overlayfs.

    with FuseunionMount(place, [lower], upper, merged) as mount:
        (mount / "file").write_text("x")

Leaving the block unmounts and checks what must be true after every mount: the daemon held no descriptor of an idle
file, `umount` returned 0 after the daemon was gone, the log holds no error, the work directory is gone or empty.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support import libc, processes
from tests.support.interpreter import Interpreter
from tests.support.mountinfo import mount_at
from tests.support.waiting import wait_until

TROUBLE = re.compile(r"Traceback|\b(?:ERROR|CRITICAL)\b|Exception|[Uu]nexpected")
"""What a daemon's log must not hold."""

SHOWS_IMAGE = "/proc/self/fd/3"
"""In the command line of a program that shows an image (fuseunion/images/layers/programs.py)."""

START_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """What the mounts of one test share: the interpreter, the token of its processes, a directory for logs."""

    interpreter: Interpreter
    token: str
    logs: Path

    def environment(self) -> dict[str, str]:
        """The environment of every command of the test."""
        return {
            **os.environ,
            processes.TOKEN_VARIABLE: self.token,
            "PYTHONPATH": self.interpreter.python_path,
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def fuseunion(self, *arguments: str | Path, cwd: str | Path = "/") -> subprocess.CompletedProcess[str]:
        """Run a command of the product to its end; its output is captured."""
        return subprocess.run(
            self.interpreter.command(*map(str, arguments)),
            env=self.environment(),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=120,
        )


def escaped(path: Path) -> str:
    """A path as one element of a LOWER list."""
    return str(path).replace("\\", "\\\\").replace(":", "\\:")


@dataclass(slots=True)
class FuseunionMount:
    """One mount of the product, from the command that makes it to the command that ends it."""

    place: Place
    lowers: Sequence[Path]
    upper: Path | None
    merged: Path
    options: Sequence[str] = ()
    arguments: Sequence[str] = ()
    work: Path | None = None
    tolerated: str | None = None
    """A regular expression for log lines that this test provokes on purpose."""
    faulty: bool = False
    """The daemon's system calls fail: a file without a name may be held by the descriptor that it was open by."""
    daemon: int = field(init=False, default=0)
    programs: list[int] = field(init=False, default_factory=list)
    """Those that show the images among the layers."""
    _siblings: set[str] = field(init=False, default_factory=set)
    _log: Path = field(init=False)
    _idle: set[str] = field(init=False, default_factory=set)

    def __truediv__(self, name: str | bytes) -> Path:
        """A path in the merged tree."""
        return self.merged / os.fsdecode(name)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abandon(error)
            return
        try:
            self.stop()
        except BaseException as trouble:
            self.abandon(trouble)
            raise

    def abandon(self, error: BaseException) -> None:
        """End a mount whose test failed with `error`, which gets the daemon's log."""
        error.add_note(f"log of the daemon:\n{self.log()[-4000:]}")
        with contextlib.suppress(AssertionError, OSError, subprocess.SubprocessError):
            self.place.fuseunion("umount", self.merged)
        self.kill()

    def start(self) -> None:
        """Mount; the mount must answer when the command returns."""
        if self.upper is not None:
            self._siblings = set(os.listdir(self.upper.parent)) | {self.upper.name}
        self._log = self.place.logs / f"{self.merged.name}-{len(os.listdir(self.place.logs))}.log"
        before = set(processes.with_token(self.place.token))
        arguments = [
            *(["-o", ",".join(self.options)] if self.options else []),
            *(["--work", str(self.work)] if self.work is not None else []),
            "--log-file",
            str(self._log),
            *self.arguments,
            ":".join(map(escaped, self.lowers)),
            *([str(self.upper)] if self.upper is not None else []),
            str(self.merged),
        ]
        result = self.place.fuseunion(*arguments)
        assert result.returncode == 0, f"mount failed ({result.returncode}): {result.stdout}{result.stderr}"
        assert mount_at(self.merged) is not None, f"the command returned 0 but {self.merged} is not mounted"
        new = [pid for pid in processes.with_token(self.place.token) if pid not in before]
        self.programs = [pid for pid in new if SHOWS_IMAGE in processes.command_line(pid)]
        daemons = [pid for pid in new if pid not in self.programs]
        assert len(daemons) == 1, f"one daemon expected, got {[processes.command_line(pid) for pid in daemons]}"
        self.daemon = daemons[0]
        self._idle = set(processes.descriptors(self.daemon).values())

    def stop(self) -> None:
        """Unmount and check what must hold then."""
        if not self.faulty:
            self.assert_idle()
        result = self.place.fuseunion("umount", self.merged)
        assert result.returncode == 0, f"umount failed ({result.returncode}): {result.stdout}{result.stderr}"
        assert mount_at(self.merged) is None, f"umount returned 0 but {self.merged} is still mounted"
        left = processes.with_token(self.place.token)
        assert self.daemon not in left, "umount returned before the daemon was gone"
        assert not set(self.programs) & set(left), "umount returned before the images were complete"
        self.check_log()
        self._check_work()

    def log(self) -> str:
        """What the daemon wrote."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def check_log(self) -> None:
        """Fail when the daemon logged a bug of its own."""
        bad = [
            line
            for line in self.log().splitlines()
            if TROUBLE.search(line) and not (self.tolerated and re.search(self.tolerated, line))
        ]
        assert not bad, f"the daemon logged trouble: {bad[0]}\n{self.log()[-4000:]}"

    def layer_descriptors(self) -> list[str]:
        """What the daemon holds open inside its layers beyond what it held when it was idle.

        The bounded cache of O_PATH descriptors of directories (fuseunion/core/disk/realdir.py) is no open file.
        """
        roots = tuple(str(root) + "/" for root in [*self.lowers, *([self.upper] if self.upper else [])])
        found = []
        for fd, target in processes.descriptors(self.daemon).items():
            if not target.startswith(roots) or target in self._idle:
                continue
            # A descriptor may be closed between the listing and the look.
            with contextlib.suppress(FileNotFoundError):
                if not processes.is_path_only(self.daemon, fd):
                    found.append(target)
        return sorted(found)

    def assert_idle(self) -> None:
        """No descriptor is held for a file that nobody has open (RELEASE is asynchronous, so this waits)."""
        try:
            wait_until(lambda: not self.layer_descriptors(), "the daemon to close its layer descriptors", 5)
        except AssertionError as error:
            raise AssertionError(f"{error}; it holds {self.layer_descriptors()}") from None

    def _check_work(self) -> None:
        if self.work is not None:
            _assert_empty(self.work / "work")
        if self.upper is None:
            return
        for name in sorted(set(os.listdir(self.upper.parent)) - self._siblings):
            added = self.upper.parent / name
            if not name.startswith(".") or added == self.work:
                continue
            kept = set(os.listdir(added)) if added.is_dir() else {"(a file)"}
            assert kept & {"links", "fuseunion.db"}, f"left beside upper: {name} with {sorted(kept)}"
            _assert_empty(added / "work")

    def kill(self) -> None:
        """SIGKILL for the daemon, and the dead mount away: what a crash leaves. Also the way out of a failed test."""
        with contextlib.suppress(ProcessLookupError):
            if self.daemon:
                os.kill(self.daemon, signal.SIGKILL)
                wait_until(lambda: self.daemon not in processes.with_token(self.place.token), "the daemon's end")
        while mount_at(self.merged) is not None:
            try:
                libc.umount(str(self.merged), libc.MNT_DETACH)
            except PermissionError:
                subprocess.run(["fusermount3", "-u", "-z", str(self.merged)], check=True)


def _assert_empty(inner: Path) -> None:
    """Nothing is left in WORK/work but what stays there for good, the mark of a volatile mount."""
    left = set(os.listdir(inner)) - {"incompat"} if inner.exists() else None
    assert not left, f"left in {inner}: {left}"


@dataclass(slots=True)
class KernelMount:
    """One mount of the kernel's overlayfs over the same kind of layers; needs root."""

    lowers: Sequence[Path]
    upper: Path | None
    merged: Path
    work: Path | None = None
    options: Sequence[str] = ("redirect_dir=off", "index=off", "metacopy=off")

    def __truediv__(self, name: str | bytes) -> Path:
        """A path in the merged tree."""
        return self.merged / os.fsdecode(name)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.stop()
        else:
            libc.umount(str(self.merged), libc.MNT_DETACH)

    def start(self) -> None:
        """Mount."""
        parts = ["lowerdir=" + ":".join(map(escaped, self.lowers)), *self.options]
        if self.upper is not None:
            work = self.work if self.work is not None else self.upper.parent / (self.upper.name + "-kernel-work")
            work.mkdir(exist_ok=True)
            self.upper.mkdir(exist_ok=True)
            parts += [f"upperdir={self.upper}", f"workdir={work}"]
        libc.mount("overlay", str(self.merged), "overlay", 0, ",".join(parts))

    def stop(self) -> None:
        """Unmount."""
        libc.umount(str(self.merged))
