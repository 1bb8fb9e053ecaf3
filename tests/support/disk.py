"""A filesystem in an image file, and what of it has reached its device.

The file shows only what the filesystem has sent to the loop device. So a copy of it is what a power failure at that
moment would leave: with the journal replayed it is what the next boot would find.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MIB = 1 << 20
# xfsprogs makes none below 300 MiB. The files are sparse.
_SIZES = {"ext4": 64 * _MIB, "xfs": 320 * _MIB}
# Nothing by itself within a test: ext4 writes its journal every 5 seconds by default, xfs cannot be told.
_OPTIONS = {"ext4": "loop,commit=600", "xfs": "loop"}


@dataclass(frozen=True, slots=True)
class Disk:
    """A mounted image.

    Attributes:
        root: where it is mounted.
    """

    fstype: str
    image: Path
    root: Path

    @contextmanager
    def after_a_power_failure(self) -> Iterator[Path]:
        """The tree as it would be found if the machine stopped now; ext4 for everybody, others for root.

        Devices and sockets are left out of ext4's.
        """
        copy, tree = self.image.with_name("copy"), self.image.with_name("found")
        _run("cp", "--sparse=always", self.image, copy)
        tree.mkdir()
        if self.fstype == "ext4":
            # Replays the journal, which debugfs does not; 1 says that it did.
            _run("e2fsck", "-p", copy, codes=(0, 1))
            _run("debugfs", "-R", f"rdump / {tree}", copy)
            yield tree
        else:
            # Not read-only, because the log is replayed. The original, with the same UUID, is still mounted.
            _run("mount", "-o", "loop,nouuid", copy, tree)
            try:
                yield tree
            finally:
                _run("umount", tree)
        shutil.rmtree(tree)
        copy.unlink()


@contextmanager
def disk(fstype: str, image: Path, root: Path) -> Iterator[Disk]:
    """Make and mount an image; needs root."""
    with image.open("wb") as file:
        file.truncate(_SIZES[fstype])
    _run(f"mkfs.{fstype}", "-q", image)
    root.mkdir()
    _run("mount", "-o", _OPTIONS[fstype], image, root)
    try:
        yield Disk(fstype, image, root)
    finally:
        _run("umount", root)


def _run(*command: str | Path, codes: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode in codes, f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}"
