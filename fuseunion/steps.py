"""Long work in steps: a generator that stops wherever somebody else may go on.

Who drives one decides what happens between two steps: an engine answers other requests, a tool goes on at once. So
whatever was found out before a stop may be untrue after it, and has to be looked at again before it is relied on:
between a check and the change that it allows there is no stop. What is lent for a while (permissions, borrowed
descriptors) is given back before each.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Steps: TypeAlias = Generator[None, None, T]
"""Work that ends with a result. Closing it in between leaves everything in order."""


def in_one_piece(steps: Steps[T]) -> T:
    """Do all of it at once.

    Returns:
        Its result.
    """
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
