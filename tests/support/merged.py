"""One lower, shown writable in different ways: the program under test and what it is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.support.namespace import Namespace
from tests.support.product import substitute


class Engine(Enum):
    """Who makes the writable tree."""

    PLAIN = "a plain copy"  # what POSIX says
    KERNEL = "kernel overlayfs"
    FUSEUNION = "fuseunion"


@dataclass(frozen=True, slots=True)
class Writable:
    """A writable tree over `lower`, in `directory`; may be mounted any number of times, one after the other."""

    engine: Engine
    namespace: Namespace
    launcher: Path
    lower: Path
    directory: Path

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """The merged tree."""
        upper, work, merged = self.directory / "upper", self.directory / "work", self.directory / "merged"
        if self.engine is Engine.PLAIN:
            yield self._plain(merged)
            return
        self.namespace.run("mkdir", "-p", upper, work, merged)
        self.namespace.run(*self._mount_command(upper, work, merged))
        try:
            yield merged
        finally:
            self.namespace.run("umount", merged)

    def _plain(self, merged: Path) -> Path:
        if self.namespace.run("test", "-e", merged, check=False).returncode != 0:
            self.namespace.run("mkdir", "-p", merged)
            self.namespace.run("cp", "-a", f"{self.lower}/.", merged)
        return merged

    def _mount_command(self, upper: Path, work: Path, merged: Path) -> list[str | Path]:
        layers = f"lowerdir={self.lower},upperdir={upper},workdir={work}"
        if self.engine is Engine.KERNEL:
            # index=on: the names of one lower file stay one file, as on a plain directory. A user namespace may not
            # use trusted.* attributes.
            private = ",userxattr" if self.namespace.is_user_namespace else ""
            return ["mount", "-t", "overlay", "overlay", "-o", f"{layers},index=on{private}", merged]
        if substitute() is not None:
            return [self.launcher, "-o", layers, merged]
        return [self.launcher, self.lower, upper, merged]
