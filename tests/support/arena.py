"""The directory of one test: its layers, its mount points, its processes.

An arena remembers each lower that was built in it and checks at the end of the test that nobody changed it: bit for
bit, with its times and its inode numbers.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import tree
from tests.support.actor import Actor
from tests.support.layers import Name, Node, build
from tests.support.mounts import FuseunionMount, KernelMount, Place


@dataclass(slots=True)
class Arena:
    """Where a test lives."""

    root: Path
    actor: Actor
    place: Place
    _lowers: dict[Path, tree.Tree] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def upper(self) -> Path:
        """The usual upper."""
        return self.root / "upper"

    def directory(self, name: str) -> Path:
        """A directory of this name, made if it is missing."""
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def lower(self, description: Mapping[Name, Node], name: str | None = None) -> Path:
        """Build a lower layer that must be unchanged when the test ends."""
        path = build(self.root / (name or f"lower{next(self._numbers)}"), description)
        self.guard(path)
        return path

    def guard(self, lower: Path) -> None:
        """Check at the end of the test that this tree is as it is now."""
        _settle(lower)
        self._lowers[lower] = tree.snapshot(lower)

    def mount(
        self,
        *lowers: Path,
        upper: Path | None = None,
        merged: str = "merged",
        options: Sequence[str] = (),
        arguments: Sequence[str] = (),
        work: Path | None = None,
        tolerated: str | None = None,
    ) -> FuseunionMount:
        """A mount of the product over these lowers, topmost first, and the usual upper."""
        return FuseunionMount(
            self.place,
            lowers,
            upper or self.upper,
            self.directory(merged),
            options,
            arguments,
            work,
            tolerated,
        )

    def mount_read_only(self, *lowers: Path, merged: str = "merged", options: Sequence[str] = ()) -> FuseunionMount:
        """A mount of the product without an upper."""
        return FuseunionMount(self.place, lowers, None, self.directory(merged), options, ["--read-only"])

    def kernel(self, *lowers: Path, upper: Path | None, merged: str = "kernel-merged") -> KernelMount:
        """A mount of the kernel's overlayfs over these lowers, topmost first."""
        return KernelMount(lowers, upper, self.directory(merged))

    def release(self, lower: Path) -> None:
        """The lower is as it was when `guard` took it; it is about to go, so it is not checked again."""
        before = self._lowers.pop(lower)
        changed = tree.differences(before, tree.snapshot(lower), tree.EXACT)
        assert not changed, f"{lower.name} changed:\n  " + "\n  ".join(changed)

    def check_lowers(self) -> None:
        """Every guarded lower is unchanged."""
        for path in list(self._lowers):
            self.release(path)

    def remove(self) -> None:
        """Delete the directory, with what belongs to subordinate ids."""
        command = ["rm", "-rf", "--one-file-system", str(self.root)]
        if subprocess.run(command, capture_output=True).returncode:
            subprocess.run(["unshare", "--map-root-user", "--map-auto", *command], check=True)


def _settle(directory: Path) -> None:
    """Write out the files that have data and no blocks: ext4 says so for a moment while it allocates some."""
    for path, status in tree.walk(directory):
        if stat.S_ISREG(status.st_mode) and status.st_size and not status.st_blocks:
            with contextlib.suppress(PermissionError), open(os.path.join(os.fsencode(directory), path), "rb") as file:
                os.fsync(file.fileno())
