"""The text of a link.

A link leads through the state directory, STATE/lower/N/path, so that its text tells which layer and which object it
stands for, wherever the user moves it, and no link that the user makes can be taken for one of ours. A relative link
goes the same way from its own directory; moved to another depth it leads nowhere, but is still understood.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fuseunion.core.layer import Layer
from fuseunion.core.realdir import RealDir
from fuseunion.options import LinkStyle

PATH_MAX = 4096


@dataclass(frozen=True, slots=True)
class Target:
    """What a link stands for: a layer ("0", "1", ... or "upper") and the names that lead to the object in it."""

    layer: str
    names: tuple[bytes, ...]


class Links:
    """Writes and reads the links of one ranch.

    Args:
        state: the ranch's state directory.
        merged: where the ranch is seen.
        labels: how each layer is called aside, and what leads to its root from there.
    """

    def __init__(self, state: Path, merged: str, style: LinkStyle, labels: dict[Layer, tuple[str, bytes]]) -> None:
        absolute = os.fsencode(state / "lower")
        self._absolute = absolute + b"/"
        self._inner = b"/" + os.fsencode(state.name) + b"/lower/"
        self._relative = os.fsencode(os.path.relpath(state / "lower", merged)) + b"/"
        self._style = style
        self._labels = labels

    def lead(self, real: RealDir, depth: int) -> bytes:
        """What the texts of all links to objects in one real directory begin with.

        Args:
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
