"""The programs that know a filesystem: e2fsprogs and squashfs-tools, run so that what goes wrong is one line.

An image is handed to them by descriptor (/proc/self/fd/N), so that they work on the file that was opened, checked and
locked, whatever has its name by now. A program that runs when ^C comes is ended before the command goes on to clean up;
one that was killed leaves a file that the command does not publish.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from fuseunion.errors import ExitCode, UserError, one_line

_PACKAGES = {"mksquashfs": "squashfs-tools"}
"""What is not in e2fsprogs."""

_PLACES = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where these programs are, and which the PATH of an ordinary user may lack."""

BANNER = re.compile(r"\w+ \d+\.\d+\S* \(\d+-\w+-\d{4}\)")
"""How the programs of e2fsprogs begin, on stderr: `e2fsck 1.47.0 (5-Feb-2023)`."""

_NO_SPACE = os.strerror(28)


def find(program: str) -> str:
    """The path of a program.

    Raises:
        UserError: UNAVAILABLE: not installed; the line says with which package it comes.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_PLACES))
    found = shutil.which(program, path=path)
    if found is None:
        package = _PACKAGES.get(program, "e2fsprogs")
        raise UserError(f"{program} is not installed; it comes with the package {package}", ExitCode.UNAVAILABLE)
    return found


def by_descriptor(fd: int, offset: int = 0) -> str:
    """How the programs of e2fsprogs are given a filesystem within an open file.

    Args:
        offset: bytes from the beginning of the file (lib/ext2fs/unix_io.c, unix_set_option).
    """
    return f"/proc/self/fd/{fd}?offset={offset}" if offset else f"/proc/self/fd/{fd}"


def run(
    doing: str,
    arguments: Sequence[str],
    *,
    fds: Sequence[int] = (),
    accepted: Collection[int] = (0,),
    commands: str = "",
    silent: bool = False,
    seen: Callable[[str], None] | None = None,
    cwd: str | None = None,
    limit: float | None = None,
) -> tuple[int, str]:
    """Run a program to its end.

    Args:
        doing: for the message when it fails, as in "make 'x.img'".
        arguments: its name first.
        fds: what it needs of our descriptors.
        accepted: the exit statuses that are none of a failure.
        commands: its standard input.
        silent: it says something on stderr only when it fails, whatever its exit status, as debugfs does.
        seen: told every piece that it prints, for progress.
        cwd: where it runs.
        limit: seconds that it may take, where only a little is to be looked at.

    Returns:
        Its exit status, and what it printed on stdout.
    Raises:
        UserError: UNAVAILABLE where it is not installed; FAILURE with what it said last.
    """
    command = [find(arguments[0]), *arguments[1:]]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if seen is None else subprocess.STDOUT,
        pass_fds=fds,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C"},
        # ^C is for this process, which ends the program and cleans up behind it.
        start_new_session=True,
    ) as process:
        try:
            if seen is None:
                printed, said = process.communicate(os.fsencode(commands), limit)
            else:
                printed = said = _watched(process, seen)
        except subprocess.TimeoutExpired:
            process.kill()
            raise UserError(
                f"cannot {doing}: {arguments[0]} did not finish in {limit:g} seconds", ExitCode.FAILURE
            ) from None
        except BaseException:
            process.kill()
            raise
    complains = silent and any(line.strip() and not BANNER.match(line) for line in os.fsdecode(said).splitlines())
    if process.returncode not in accepted or complains:
        raise UserError(
            f"cannot {doing}: {arguments[0]}: {_reason(process.returncode, said, printed)}", ExitCode.FAILURE
        )
    return process.returncode, os.fsdecode(printed)


def _watched(process: subprocess.Popen[bytes], seen: Callable[[str], None]) -> bytes:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    printed = bytearray()
    while piece := os.read(process.stdout.fileno(), 4096):
        printed += piece
        del printed[:-8192]  # the end tells why
        seen(os.fsdecode(piece))
    process.wait()
    return bytes(printed)


def _reason(status: int, said: bytes, printed: bytes) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    text = os.fsdecode(said)
    if _NO_SPACE in text:
        return _NO_SPACE
    lines = [line.strip() for line in (*os.fsdecode(printed).splitlines(), *text.splitlines())]
    telling = [line for line in lines if line and not BANNER.match(line)]
    return one_line(telling[-1])[:300] if telling else f"failed with status {status}"


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command as ^C does: with everything cleaned up that was begun."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
