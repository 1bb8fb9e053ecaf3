"""Names in a directory that begin with `.wh.`: whiteouts of AUFS, of OCI layers and of fuse-overlayfs.

.wh.NAME        hides NAME in the layers below its own, never in its own (OCI image specification, layer.md)
.wh..wh..opq    hides all names of the layers below
.wh..wh.*       other names that begin so are AUFS's own, and mean nothing here
"""

from __future__ import annotations

from collections.abc import Iterable

PREFIX = b".wh."
OPAQUE = b".wh..wh..opq"
_OWN = b".wh..wh."


def is_reserved(name: bytes) -> bool:
    """True for names that are whiteouts to fuse-overlayfs and OCI tools, so that no other object can have them."""
    return name.startswith(PREFIX)


def reserved_among(names: Iterable[bytes]) -> list[bytes]:
    """Those that are reserved."""
    return [name for name in names if name.startswith(PREFIX)]


def name_hidden_by(name: bytes) -> bytes | None:
    """The name that a `.wh.` file hides in the layers below; None for one that hides no single name."""
    return None if name.startswith(_OWN) else name[len(PREFIX) :]


class WhFiles:
    """What the `.wh.` files of one directory say.

    Attributes:
        hidden: the names that are hidden in the layers below.
        opaque: all are.
    """

    __slots__ = ("hidden", "opaque")

    def __init__(self, names: Iterable[bytes]) -> None:
        self.hidden: set[bytes] = set()
        self.opaque = False
        for name in reserved_among(names):
            self.note(name, present=True)

    def note(self, name: bytes, *, present: bool) -> None:
        """A name was written or removed."""
        if name == OPAQUE:
            self.opaque = present
        elif is_reserved(name):
            hidden = name_hidden_by(name)
            if hidden is not None:
                (self.hidden.add if present else self.hidden.discard)(hidden)
