"""Which lowers hold a name of a directory, or hide it from those below them.

With many lowers most names lie in one of them, and asking all the others costs more than everything else. What a lower
directory holds never changes while it is mounted; so once it was listed, only those are asked that hold the name or a
`.wh.` file for it, and for a name that none holds, none.

It is a hint: the others would have said that they have nothing of that name. Whatever is asked is recognised as ever,
and of the upper nothing is remembered.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.wh_files import is_reserved, name_hidden_by

DEEP = 4
"""So many lowers make it worth while to remember."""

_AT_ONCE = 4096
"""How many names a lookup may read, which keeps others waiting; a larger directory is learned once it is listed."""

_KEPT = 1 << 16
"""How many names are remembered in all: up to 10 MB."""


class Holders:
    """Which real directories of a stack hold a name, or hide it.

    Attributes:
        stack: the real directories, topmost first.
    """

    __slots__ = ("__weakref__", "_chosen", "_masks", "stack")

    def __init__(self, stack: tuple[RealDir, ...]) -> None:
        self.stack = stack
        self._masks: dict[bytes, int] | None = {}  # bit n is set where stack[n] has the name; None: not known
        self._chosen: dict[int, tuple[RealDir, ...]] = {0: ()}

    def __len__(self) -> int:
        return len(self._masks or ())

    def note(self, position: int, names: Iterable[bytes]) -> None:
        """The real directory at a position of the stack has these names; the `.wh.` files count too."""
        masks, bit = self._masks, 1 << position
        assert masks is not None
        for name in names:
            shown = name_hidden_by(name) if is_reserved(name) else name
            if shown is not None:
                masks[shown] = masks.get(shown, 0) | bit

    def forget(self) -> None:
        """Nothing is known any more: all of the stack have to be asked."""
        self._masks = None
        self._chosen.clear()

    def of(self, name: bytes) -> tuple[RealDir, ...]:
        """Those of the stack that have to be asked for a name, topmost first."""
        if self._masks is None:
            return self.stack
        mask = self._masks.get(name, 0)
        chosen = self._chosen.get(mask)
        if chosen is None:
            chosen = tuple(real for position, real in enumerate(self.stack) if mask >> position & 1)
            self._chosen[mask] = chosen
        return chosen


class RememberedHolders:
    """The holders of all directories that are remembered: a bounded number of names, those that were learned last."""

    __slots__ = ("_kept", "_names")

    def __init__(self) -> None:
        self._kept: OrderedDict[weakref.ref[Holders], int] = OrderedDict()
        self._names = 0

    @property
    def names(self) -> int:
        """How many names are remembered."""
        return self._names

    def keep(self, holders: Holders) -> None:
        """Remember what was learned as long as its directory is known; others, or this, may have to be forgotten."""
        self._kept[weakref.ref(holders, self._gone)] = len(holders)
        self._names += len(holders)
        while self._names > _KEPT:
            oldest, names = self._kept.popitem(last=False)
            self._names -= names
            forgotten = oldest()
            if forgotten is not None:
                forgotten.forget()

    def _gone(self, holders: weakref.ref[Holders]) -> None:
        self._names -= self._kept.pop(holders, 0)

    def learn(self, stack: tuple[RealDir, ...]) -> Holders:
        """List a stack and remember it; what is too large, or cannot be listed, stays unknown."""
        holders = Holders(stack)
        if _read(stack, holders):
            self.keep(holders)
        else:
            holders.forget()
        return holders


def _read(stack: Sequence[RealDir], holders: Holders) -> bool:
    left = _AT_ONCE
    for position, real in enumerate(stack):
        marks: list[bytes] = []
        try:
            for names in real.scan():
                left -= len(names)
                if left < 0:
                    return False
                holders.note(position, names)
                marks += filter(is_reserved, names)
        except OSError:
            return False  # who asks it for a name is told why
        real.learn_wh_files(marks)
    return True
