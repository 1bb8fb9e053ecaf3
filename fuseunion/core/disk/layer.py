"""One layer: a directory tree that takes part in a union, and its root."""

from __future__ import annotations

from fuseunion.core.disk.access import LayerAccess
from fuseunion.core.disk.descriptors import Descriptors
from fuseunion.core.disk.realdir import RealDir


class Layer(LayerAccess):
    """An open layer.

    Args:
        root_fd: an O_RDONLY|O_DIRECTORY descriptor of its root, which the layer owns from now on.
        writable, label, covered, hidden, closed_is_empty: as LayerAccess.
        descriptors: the budget, which all layers of a union share; None for a layer by itself.

    Attributes:
        root: the root directory.
    """

    def __init__(
        self,
        root_fd: int,
        *,
        writable: bool,
        label: str,
        covered: tuple[bytes, ...] = (),
        descriptors: Descriptors | None = None,
        hidden: frozenset[tuple[int, int]] = frozenset(),
        closed_is_empty: bool = False,
    ) -> None:
        super().__init__(
            root_fd,
            writable=writable,
            label=label,
            covered=covered,
            descriptors=Descriptors() if descriptors is None else descriptors,
            hidden=hidden,
            closed_is_empty=closed_is_empty,
        )
        self.root = RealDir(self, None, b"", covered if self.covered_stat is not None else ())
        self.root.pin(root_fd)

    def close(self) -> None:
        """Close every descriptor of the layer, its store, and what is cached for those that share the budget."""
        self.descriptors.close()
        self.root.unpin()
        if self.ownership is not None:
            self.ownership.close()
