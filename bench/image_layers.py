"""Layers that are image files, beside the same layers as directories.

    .venv/bin/python bench/image_layers.py [--rounds N] [--files N] [--megabytes N] [--directory DIRECTORY]

A lower of small files and one large file, as a directory and as a squashfs image; an upper in a directory and in an
ext4 image. The images are shown by programs, as an ordinary user has them, or mounted by the kernel, as root has them,
under the fuse engine and under overlayfs; or by squashfuse and fuse2fs alone, without a union. Each round has a fresh
upper and fresh mounts, and begins with another contestant. Prints medians in a Markdown table. Needs root,
squashfs-tools, squashfuse, fuse2fs and loop devices; DIRECTORY must be root's own.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FUSEUNION = str(Path(sys.executable).with_name("fuseunion"))
PER_DIRECTORY = 100
SMALL = 1000


class Ground(NamedTuple):
    """What is there before anything is mounted."""

    directory: Path
    squashfs: Path
    archive: Path
    image: Path
    files: int
    megabytes: int


class Contestant(NamedTuple):
    """A way to have the tree at a place.

    Attributes:
        mount: at (place, its scratch directory).
        unmount: from the place.
        reads, writes: which of the works it is for.
    """

    mount: Callable[[Ground, Path, Path], None]
    unmount: Callable[[Path], None]
    reads: bool = True
    writes: bool = True


def _run(*words: str | Path | int) -> None:
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)


def _union(lower: str, *words: str, image: bool) -> Callable[[Ground, Path, Path], None]:
    def mount(ground: Ground, merged: Path, scratch: Path) -> None:
        upper = scratch / "upper"
        if image:
            _run("cp", "--sparse=always", ground.image, upper)
        _run(FUSEUNION, *words, getattr(ground, lower), upper, merged)

    return mount


def _alone(program: str, what: str) -> Callable[[Ground, Path, Path], None]:
    def mount(ground: Ground, merged: Path, scratch: Path) -> None:
        image = scratch / "image"
        _run("cp", "--sparse=always", getattr(ground, what), image)
        _run(program, image, merged)

    return mount


def _end_union(merged: Path) -> None:
    _run(FUSEUNION, "umount", merged)


def _end(merged: Path) -> None:
    _run("umount", merged)


_FUSE = ("-o", "images=fuse")
_LOOP = ("-o", "images=kernel")
_OVERLAYFS = ("--engine", "kernel")

CONTESTANTS = {
    "both directories": Contestant(_union("directory", image=False), _end_union),
    "lower squashfs": Contestant(_union("squashfs", *_FUSE, image=False), _end_union, writes=False),
    "upper ext4": Contestant(_union("directory", *_FUSE, image=True), _end_union, reads=False),
    "both images": Contestant(_union("squashfs", *_FUSE, image=True), _end_union),
    "both images, by the kernel": Contestant(_union("squashfs", *_LOOP, image=True), _end_union),
    "overlayfs on both images": Contestant(_union("squashfs", *_OVERLAYFS, image=True), _end_union),
    "squashfuse alone": Contestant(_alone("squashfuse_ll", "squashfs"), _end, writes=False),
    "fuse2fs alone": Contestant(_alone("fuse2fs", "image"), _end, reads=False),
}


def _reading(ground: Ground, merged: Path) -> dict[str, list[str]]:
    tree = str(merged / "tree")
    return {
        f"find -ls of {ground.files:,} files": ["find", tree, "-ls"],
        "the same again": ["find", tree, "-ls"],
        f"grep -r in {ground.files:,} files of {SMALL:,} bytes": ["grep", "-rc", "xyz", tree],
        f"reading {ground.megabytes} MiB": ["dd", f"if={merged}/large", "of=/dev/null", "bs=1M"],
    }


def _writing(ground: Ground, merged: Path) -> dict[str, list[str]]:
    return {
        f"tar -x of {ground.files:,} files": [
            "tar",
            "-xf",
            str(ground.archive),
            "-C",
            str(merged),
            "--one-top-level=out",
        ],
        f"writing {ground.megabytes} MiB, fsync": [
            *("dd", "if=/dev/zero", f"of={merged}/new", "bs=1M", f"count={ground.megabytes}", "conv=fsync")
        ],
        "rm -rf of what was extracted": ["rm", "-rf", str(merged / "out")],
    }


def _prepare(place: Path, files: int, megabytes: int) -> Ground:
    tree = place / "lower/tree"
    for number in range(files):
        directory = tree / str(number // PER_DIRECTORY)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file {number}").write_bytes(os.urandom(SMALL // 2).hex().encode())
    (place / "lower/large").write_bytes(os.urandom(megabytes << 20))
    _run("mksquashfs", place / "lower", place / "lower.sqfs", "-quiet", "-no-progress")
    _run("tar", "-cf", place / "tree.tar", "-C", place / "lower", "tree")
    _run(
        FUSEUNION, "image", "create", "--size", f"{4 * megabytes + 256}M", "--sparse", "--type", "ext4", place / "image"
    )
    return Ground(place / "lower", place / "lower.sqfs", place / "tree.tar", place / "image", files, megabytes)


def _sample(ground: Ground, contestant: Contestant, place: Path) -> dict[str, float]:
    """Seconds of each work."""
    found: dict[str, float] = {}
    for works in ([_reading] if contestant.reads else []) + ([_writing] if contestant.writes else []):
        scratch = place / "sample"
        merged = scratch / "merged"
        merged.mkdir(parents=True)
        contestant.mount(ground, merged, scratch)
        try:
            for name, words in works(ground, merged).items():
                begin = time.perf_counter()
                # grep exits with 1, since it finds nothing.
                subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=words[0] != "grep")
                found[name] = time.perf_counter() - begin
        finally:
            contestant.unmount(merged)
            shutil.rmtree(scratch, ignore_errors=True)
    return found


def _shown(samples: list[float]) -> str:
    return f"{statistics.median(samples) * 1000:.3g} ms" if samples else "–"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    samples: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="fuseunion-bench-", dir=arguments.directory) as name:
        ground = _prepare(Path(name), arguments.files, arguments.megabytes)
        order = list(CONTESTANTS.items())
        for _ in range(arguments.rounds):
            for contestant, how in order:
                for work, seconds in _sample(ground, how, Path(name)).items():
                    samples.setdefault(work, {}).setdefault(contestant, []).append(seconds)
            order.append(order.pop(0))
    kind = subprocess.run(["stat", "-f", "-c", "%T", arguments.directory], capture_output=True, text=True, check=True)
    print(f"Linux {platform.release()}, {os.cpu_count()} CPUs, on {kind.stdout.strip()}, {arguments.rounds} rounds\n")
    print("| | " + " | ".join(CONTESTANTS) + " |\n|---" * 1 + "|---" * len(CONTESTANTS) + "|")
    for work, found in samples.items():
        print(f"| {work} | " + " | ".join(_shown(found.get(contestant, [])) for contestant in CONTESTANTS) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
