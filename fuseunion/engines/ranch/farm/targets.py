"""The text of a link, and what it stands for.

A link leads through the state directory, STATE/lower/N/path, so that its text tells which layer and which object it
stands for, wherever the user moves it, and no link that the user makes can be taken for one of ours. A relative link
goes the same way from its own directory; moved to another depth it leads nowhere, but is still understood.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fuseunion.core.disk.access import LayerAccess
from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.mounting.options import LinkStyle

PATH_MAX = 4096


@dataclass(frozen=True, slots=True)
class Target:
    """What a link stands for: a layer ("0", "1", ... or "upper") and the names that lead to the object in it."""

    layer: str
    names: tuple[bytes, ...]

    @property
    def path(self) -> bytes:
        """The path of the object in its layer."""
        return b"/".join(self.names)


class Links:
    """Writes and reads the links of one ranch.

    Args:
        state: the ranch's state directory.
        merged: where the ranch is seen.
        labels: how each layer is called aside, and what leads to its root from there.
    """

    def __init__(
        self, state: Path, merged: str, style: LinkStyle, labels: dict[LayerAccess, tuple[str, bytes]]
    ) -> None:
        absolute = os.fsencode(state / "lower")
        self._absolute = absolute + b"/"
        self._inner = b"/" + os.fsencode(state.name) + b"/lower/"
        self._relative = os.fsencode(os.path.relpath(state / "lower", merged)) + b"/"
        self._style = style
        self._labels = labels

    def lead(self, real: RealDir, depth: int) -> bytes:
        """What the texts of all links to objects in one real directory begin with.

        Args:
            real: a directory of a layer that is aside.
            depth: how many directories below MERGED the links lie.
        """
        label, root = self._labels[real.layer]
        names = []
        node: RealDir | None = real
        while node is not None and node.parent is not None:
            names.append(node.name)
            node = node.parent
        way = b"".join(name + b"/" for name in reversed(names))
        start = self._absolute if self._style is LinkStyle.ABSOLUTE else b"../" * depth + self._relative
        return start + label.encode() + b"/" + root + way

    def read(self, text: bytes) -> Target | None:
        """What a link stands for; None for a link that is not ours."""
        if text.startswith(b"/"):
            if not text.startswith(self._absolute):
                return None
            rest = text[len(self._absolute) :]
        else:
            position = text.find(self._inner)
            if position >= 0 and text.startswith(b"../"):
                rest = text[position + len(self._inner) :]
            elif text.startswith(self._inner[1:]):
                rest = text[len(self._inner) - 1 :]
            else:
                return None
        label, _, path = rest.partition(b"/")
        names = tuple(path.split(b"/"))
        strange = {b"", b".", b".."}.intersection(names)
        return None if strange else Target(label.decode(errors="replace"), names)


class Targets:
    """What the links of one farm stand for.

    Args:
        layers: by the label that links use.
    """

    def __init__(self, links: Links, layers: Mapping[str, Layer], farm: LayerAccess) -> None:
        self._links = links
        self._layers = layers
        self._farm = farm

    def target(self, source: RealDir, name: bytes, st: os.stat_result) -> Target | None:
        """What an entry stands for; None for what is no link of the ranch.

        Args:
            source, name: where it lies.
            st: its lstat.
        """
        if source.layer is not self._farm or not stat.S_ISLNK(st.st_mode):
            return None
        target = self._links.read(os.readlink(name, dir_fd=source.fd()))
        return target if target is not None and target.layer in self._layers else None

    def in_own_place(self, inode: Inode | None, target: Target) -> bool:
        """Whether a link stands for what the union shows there.

        Args:
            inode: what the union shows; None for nothing.
        """
        if isinstance(inode, Directory):
            layers = inode.layers()
            return len(layers) == 1 and self._of(layers[0]) == target
        if not isinstance(inode, File):
            return False
        place = inode.location()
        if place is None:
            return False
        above = self._of(place[0])
        return above.layer == target.layer and (*above.names, place[1]) == target.names

    def _of(self, real: RealDir) -> Target:
        names = []
        node = real
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        label = next((label for label, layer in self._layers.items() if layer is real.layer), "")
        return Target(label, tuple(reversed(names)))

    def real(self, target: Target) -> RealDir:
        """The directory of a layer that a link stands for; it need not be one."""
        real = self._layers[target.layer].root
        for name in target.names:
            real = real.child(name)
        return real

    def place(self, target: Target) -> tuple[RealDir, bytes]:
        """The directory that holds what a link stands for, and its name there."""
        return self.real(Target(target.layer, target.names[:-1])), target.names[-1]

    def is_directory(self, target: Target) -> bool:
        """Whether a link stands for a directory."""
        real, name = self.place(target)
        st = real.stat(name)
        return st is not None and stat.S_ISDIR(st.st_mode)
