"""A disk whose power can be cut: what it holds at one moment, while everything goes on.

The disk is an image file on an XFS of its own, and a cut is a clone of the file (FICLONE): XFS locks the file for it,
so the clone holds what the filesystem on the disk had sent to it at one moment, and nothing that it still kept in
memory. Mounting the clone replays the journal, as the next boot would. What a drive may do besides, lose what it was
sent and not told to keep, is not simulated.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MIB = 1 << 20
_SIZES = {"ext4": 96 * _MIB, "xfs": 320 * _MIB}
# The journal is written every second, so that the cuts fall before, into and after it. xfs cannot be told.
_OPTIONS = {"ext4": "loop,commit=1", "xfs": "loop"}
# The clone has the same UUID as the disk, which stays mounted.
_CLONE_OPTIONS = {"ext4": "loop", "xfs": "loop,nouuid"}


@dataclass(frozen=True, slots=True)
class FragileDisk:
    """A mounted disk.

    Attributes:
        root: where it is mounted.
    """

    fstype: str
    image: Path
    root: Path
    clone: Path

    def cut(self) -> None:
        """Keep what the disk holds now."""
        self.clone.unlink(missing_ok=True)
        _run("cp", "--reflink=always", self.image, self.clone)

    @contextmanager
    def next_boot(self, root: Path) -> Iterator[Path]:
        """Mount what was kept at an existing directory."""
        _run("mount", "-o", _CLONE_OPTIONS[self.fstype], self.clone, root)
        try:
            yield root
        finally:
            _run("umount", root)


@contextmanager
def fragile_disk(fstype: str, directory: Path) -> Iterator[FragileDisk]:
    """Make and mount a disk, all in an existing directory; needs root."""
    with _mounted(
        "xfs", directory / "host.img", directory / "host", 4 * _SIZES[fstype] + _SIZES["xfs"], "loop"
    ) as host:
        image, root = host / "disk.img", directory / "disk"
        with _mounted(fstype, image, root, _SIZES[fstype], _OPTIONS[fstype]):
            yield FragileDisk(fstype, image, root, host / "cut.img")


@contextmanager
def _mounted(fstype: str, image: Path, root: Path, size: int, options: str) -> Iterator[Path]:
    with image.open("wb") as file:
        file.truncate(size)
    _run(f"mkfs.{fstype}", "-q", image)
    root.mkdir()
    _run("mount", "-o", options, image, root)
    try:
        yield root
    finally:
        _run("umount", root)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}"
