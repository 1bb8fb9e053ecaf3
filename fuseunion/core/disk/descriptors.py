"""The descriptors of one union: a budget that all its layers share, and a cache of open directories within it.

    limit                                                                RLIMIT_NOFILE of the process
    |------------------------- half of it -------------------------|
    | roots | open files | copy-ups | cached directories            |     ... open files may go on  | reserve |

Cached directories take what others leave of one half of the limit, but never fewer than `FLOOR`: so many are needed to
go on working, since an operation borrows several at once (realdir.py). Open files, which their users decide about, may
go beyond the half until only the reserve is left; then the next open answers ENFILE, while everything else goes on.

When the system says EMFILE all the same, the older half of the cache is given back and the call made once more.
"""

from __future__ import annotations

import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol, TypeVar

from fuseunion.linux.os_error import os_error

T = TypeVar("T")


class Cached(Protocol):
    """What has its descriptor in the cache: a directory of a layer (realdir.py)."""

    def forget_descriptor(self) -> None:
        """The cache closed the descriptor."""


FLOOR = 32
"""Cached directories that are always allowed: four operands of an operation, each opened through KEPT_ON_THE_WAY."""

KEPT_ON_THE_WAY = 8
"""How many of the directories that lead to one are kept when it is opened; the nearest ones."""

_RESERVE = 64
"""For what lives for the length of a call, for worker threads, for the database and the log."""

PER_COPY = 2
"""Descriptors of a copy-up: what is read and what is written."""

_NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE})


class Descriptors:
    """The budget and the cache.

    Args:
        limit: how many descriptors the process may have; None asks the system.
    """

    __slots__ = ("_half", "_most", "_open", "_others")

    def __init__(self, limit: int | None = None) -> None:
        if limit is None:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._half = limit // 2
        self._most = limit - _RESERVE - FLOOR
        self._others = 0
        self._open: OrderedDict[Cached, int] = OrderedDict()

    # -- what is not in the cache ------------------------------------------------------------------------------------

    def take(self, count: int = 1) -> None:
        """Count descriptors that are needed however many there are: the roots of layers, removed directories."""
        self._others += count
        self._shrink()

    def take_for_file(self) -> None:
        """Count the descriptor of a file that a user opens.

        Raises:
            OSError: ENFILE when only the reserve is left.
        """
        self._take_if_free(1, self._most)

    def take_for_copy(self) -> None:
        """Count the descriptors of a copy-up, which may use a half of the reserve: it is soon over.

        Raises:
            OSError: ENFILE when that is used up too.
        """
        self._take_if_free(PER_COPY, self._most + _RESERVE // 2)

    def _take_if_free(self, count: int, most: int) -> None:
        if self._others + count > most:
            raise os_error(errno.ENFILE)
        self.take(count)

    def give_back(self, count: int = 1) -> None:
        """Undo a `take`."""
        self._others -= count

    # -- the cache ---------------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """How many directories may be cached now."""
        return max(self._half - self._others, FLOOR)

    def touch(self, real: Cached) -> None:
        """A cached directory was used."""
        self._open.move_to_end(real)

    def add(self, real: Cached, fd: int) -> None:
        """Cache the descriptor of a directory, which belongs to the cache from now on."""
        self._open[real] = fd
        self._shrink()

    def hand_over(self, real: Cached) -> int | None:
        """Give the descriptor of a directory to the caller, or None when it has none."""
        return self._open.pop(real, None)

    def close(self) -> None:
        """Close every cached descriptor."""
        self._shrink(0)

    def retried(self, call: Callable[[], T]) -> T:
        """Make a call that opens something; where no descriptor is left, again after some were given back.

        Raises:
            OSError: of the call.
        """
        try:
            return call()
        except OSError as error:
            if error.errno not in _NONE_LEFT or len(self._open) <= FLOOR:
                raise
        self._shrink(max(len(self._open) // 2, FLOOR))
        return call()

    def _shrink(self, size: int | None = None) -> None:
        """Close the least recently used until no more than so many are left."""
        if size is None:
            size = self.capacity
        while len(self._open) > size:
            real, fd = self._open.popitem(last=False)
            real.forget_descriptor()
            os.close(fd)
