"""Which inodes are asked for most, counted while somebody watches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class Busiest:
    """The counts of one mount, for all who watch.

    Attributes:
        watch: begins to count, or ends it; set by the adapter.
        take: what was counted since the last call, by inode number; set by the adapter.
    """

    def __init__(self) -> None:
        self._watchers: list[Counter[int]] = []
        self.watch: Callable[[bool], None] = lambda _on: None
        self.take: Callable[[], Mapping[int, int]] = dict

    @contextmanager
    def watched(self) -> Iterator[Callable[[int], list[tuple[int, int]]]]:
        """Count in the block.

        It is given a function, which says which inodes were asked for most since it was called before, at most so
        many, and how often.
        """
        own: Counter[int] = Counter()
        self._watchers.append(own)
        if len(self._watchers) == 1:
            self.watch(True)

        def most(count: int) -> list[tuple[int, int]]:
            taken = self.take()
            for watcher in self._watchers:
                watcher.update(taken)
            found = own.most_common(count)
            own.clear()
            return found

        try:
            yield most
        finally:
            self._watchers = [watcher for watcher in self._watchers if watcher is not own]
            if not self._watchers:
                self.watch(False)
