"""The directories that containers/storage makes for its overlay driver, without the engine.

    HOME/overlay/ID/diff      the layer's files; what was deleted is an AUFS whiteout `.wh.NAME`, a file of mode 0
    HOME/overlay/ID/empty     the lower of a layer without parents
    HOME/overlay/ID/{work,merged}
    HOME/overlay/l/SHORT      a symbolic link to ../ID/diff: the form in which lowers are named

(reference: containers/storage drivers/overlay/overlay.go, and what podman 4.3 was seen to leave.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.arena import Arena
from tests.support.layers import Name, Node

SHORT_LENGTH = 26


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the store."""

    home: Path
    identity: str

    @property
    def directory(self) -> Path:
        """HOME/overlay/ID."""
        return self.home / self.identity

    @property
    def diff(self) -> Path:
        """The layer's files."""
        return self.directory / "diff"

    @property
    def empty(self) -> Path:
        """An empty directory."""
        return self.directory / "empty"

    @property
    def work(self) -> Path:
        """The work directory."""
        return self.directory / "work"

    @property
    def merged(self) -> Path:
        """The mount point."""
        return self.directory / "merged"

    @property
    def link(self) -> Path:
        """The short name by which other layers' mounts call this one."""
        return self.home / "l" / self.identity.upper().rjust(SHORT_LENGTH, "X")

    def writable(self) -> str:
        """The upperdir and workdir options."""
        return f"upperdir={self.diff},workdir={self.work}"


@dataclass(frozen=True, slots=True)
class FakeStore:
    """A store in an arena."""

    arena: Arena

    @property
    def home(self) -> Path:
        """The driver's home: the working directory of the calls."""
        return self.arena.root / "storage/overlay"

    def layer(self, identity: str, files: Mapping[Name, Node] | None = None) -> Layer:
        """Make a layer; with `files` it is finished, and its files must not change."""
        layer = Layer(self.home, identity)
        for path in (layer.empty, layer.work, layer.merged, self.home / "l"):
            path.mkdir(parents=True, exist_ok=True)
        if files is None:
            layer.diff.mkdir()
        else:
            self.arena.lower(files, name=str(layer.diff.relative_to(self.arena.root)))
        layer.link.symlink_to(f"../{identity}/diff")
        return layer
