"""How long an unrelated request waits while a mount is busy with something long.

    .venv/bin/python bench/waiting.py [--runs N] [--directory DIRECTORY] [NAME ...]

For each kind of work: a fresh mount, the work in a process of its own, and meanwhile one stat(2) after the other of
names that are not there, each a new one, so that the daemon has to be asked. Prints a table in Markdown: the longest
wait over all runs, the 99th percentile, and how long the work took. Needs root, for leases and mounts.

The layers lie below DIRECTORY: on a disk, or on tmpfs, as it may be.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

FUSEUNION = str(Path(sys.executable).with_name("fuseunion"))

HELD = 3.0
"""Seconds for which something hangs that would hang for ever, or until a lease is broken."""

MANY = 10_000
PROBES_AT_LEAST = 50


class Place(NamedTuple):
    """The directories of one run."""

    lower: Path
    upper: Path
    merged: Path


class Work(NamedTuple):
    """Something long.

    Attributes:
        fill: makes what the lower holds.
        run: does it; a context in which it is under way, with what says whether it still is.
        options: of the mount.
    """

    fill: Callable[[Path], None]
    run: Callable[[Place], Iterator[Callable[[], bool]]]
    options: str = ""


# -- what the lower holds ----------------------------------------------------------------------------------------------


def _files(count: int, data: bytes) -> Callable[[Path], None]:
    def fill(lower: Path) -> None:
        (lower / "d").mkdir()
        for number in range(count):
            (lower / f"d/{number}").write_bytes(data)

    return fill


def _redirected(lower: Path) -> None:
    """Every directory says that it was somewhere else: names of directories that say the same."""
    for number in range(60):
        (lower / f"r{number}").mkdir()
        os.setxattr(lower / f"r{number}", "trusted.overlay.redirect", b"/r%d" % ((number + 1) % 60))


def _nothing(lower: Path) -> None:
    (lower / "d").mkdir()


def _one(lower: Path) -> None:
    (lower / "d").mkdir()
    (lower / "d/one").write_bytes(b"1" * 1024)


# -- what takes long ---------------------------------------------------------------------------------------------------


def _command(*arguments: str) -> Callable[[Place], Iterator[Callable[[], bool]]]:
    """A command in the merged directory."""

    def run(place: Place) -> Iterator[Callable[[], bool]]:
        with subprocess.Popen(
            arguments, cwd=place.merged, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            yield lambda: process.poll() is None

    return run


def _idle(place: Place) -> Iterator[Callable[[], bool]]:
    end = time.monotonic() + 1
    yield lambda: time.monotonic() < end


def _lease(place: Place) -> Iterator[Callable[[], bool]]:
    """This process has a lease on a file of the lower that another one wants to open through the mount."""
    fd = os.open(place.lower / "d/one", os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    fcntl.fcntl(fd, fcntl.F_SETSIG, 0)
    fcntl.fcntl(fd, fcntl.F_SETOWN, 0)
    end = time.monotonic() + HELD
    with subprocess.Popen(["cat", place.merged / "d/one"], stdout=subprocess.DEVNULL):
        yield lambda: time.monotonic() < end
        os.close(fd)


def _copies(place: Place) -> Iterator[Callable[[], bool]]:
    """150 processes write to a file of 16 MiB each."""
    script = 'for n in $(seq 0 149); do (printf + >>"d/$n") & done; wait'
    yield from _command("sh", "-c", script)(place)


def _fsync(place: Place) -> Iterator[Callable[[], bool]]:
    yield from _command("dd", "if=/dev/zero", "of=d/new", "bs=1M", "count=256", "conv=fsync")(place)


WORKS: dict[str, Work] = {
    "nothing": Work(_nothing, _idle),
    f"a lease of somebody else ({HELD:g} s)": Work(_one, _lease),
    "150 copy-ups of 16 MiB": Work(_files(150, bytes(range(256)) * 65536), _copies),
    f"mv of {MANY} lower files of 1 KiB": Work(_files(MANY, b"1" * 1024), _command("mv", "-T", "d", "e")),
    f"mv of {MANY} empty lower files": Work(_files(MANY, b""), _command("mv", "-T", "d", "e")),
    f"mv of {MANY} lower files of 1 KiB, volatile": Work(
        _files(MANY, b"1" * 1024), _command("mv", "-T", "d", "e"), "volatile"
    ),
    f"rm -rf of {MANY} lower files": Work(_files(MANY, b""), _command("rm", "-rf", "d")),
    f"chown -R of {MANY} lower files of 1 KiB": Work(_files(MANY, b"1" * 1024), _command("chown", "-R", "1:1", "d")),
    f"chown -R of {MANY} lower files of 1 KiB, volatile": Work(
        _files(MANY, b"1" * 1024), _command("chown", "-R", "1:1", "d"), "volatile"
    ),
    "ls -f of 200000 names": Work(_files(200_000, b""), _command("ls", "-f", "d")),
    "60 redirects in a circle": Work(_redirected, _command("sh", "-c", "for n in $(seq 0 59); do stat r$n/r$n; done")),
    "dd of 256 MiB with fsync": Work(_nothing, _fsync),
}


@contextmanager
def _mounted(root: Path, work: Work) -> Iterator[Place]:
    place = Place(root / "lower", root / "upper", root / "merged")
    for path in place:
        path.mkdir()
    (place.lower / "unrelated").mkdir()
    work.fill(place.lower)
    options = ["-o", work.options] if work.options else []
    subprocess.run([FUSEUNION, *options, *map(str, place)], check=True)
    try:
        yield place
    finally:
        subprocess.run([FUSEUNION, "umount", str(place.merged)], check=True)


def waits(directory: Path, work: Work) -> tuple[list[float], float]:
    """The wait of each stat in one run, and how long the work took; seconds."""
    found: list[float] = []
    temporary = tempfile.TemporaryDirectory(prefix="fuseunion-bench-", dir=directory)
    with temporary as name, _mounted(Path(name), work) as place:
        (place.merged / "unrelated").stat()  # to look it up would wait for the kernel's lock of the directory
        begin = time.perf_counter()
        with contextmanager(work.run)(place) as under_way:
            while under_way() or len(found) < PROBES_AT_LEAST:
                start = time.perf_counter()
                os.path.lexists(place.merged / f"unrelated/missing{len(found)}")
                end = time.perf_counter()
                found.append(end - start)
                time.sleep(0.0005)
        return found, end - begin


def _machine(directory: Path) -> str:
    kind = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=True).stdout
    load = os.getloadavg()[0]
    return f"Linux {platform.release()}, {os.cpu_count()} CPUs, layers on {kind.strip()}, load average {load:.1f}"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("names", nargs="*", help="only the kinds of work whose name contains one of these")
    arguments = parser.parse_args()
    print(f"{_machine(arguments.directory)}, {arguments.runs} runs\n")
    print("| meanwhile | longest wait | 99 % | the work itself |\n|---|---|---|---|")
    for name, work in WORKS.items():
        if arguments.names and not any(part in name for part in arguments.names):
            continue
        found: list[float] = []
        took: list[float] = []
        for _ in range(arguments.runs):
            some, seconds = waits(arguments.directory, work)
            found += some
            took.append(seconds)
        most = statistics.quantiles(found, n=100)[-1]
        row = (name, f"{max(found) * 1000:.1f} ms", f"{most * 1000:.1f} ms", f"{statistics.median(took):.1f} s")
        print("| " + " | ".join(row) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
