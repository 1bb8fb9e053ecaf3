"""The lowers of a seed on disk; for every third seed one of them lies on a filesystem of its own.

Inode numbers, whiteout forms and copy-up all have to do with which filesystem a layer lies on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.differential import recipes
from tests.support import libc
from tests.support.arena import Arena
from tests.support.layers import build


@contextlib.contextmanager
def lowers_of(arena: Arena, seed: int, *, hard_links: bool) -> Iterator[list[Path]]:
    """The lowers of a seed, topmost first; they must be unchanged at the end."""
    *upper_ones, bottom = recipes.layers(seed, hard_links=hard_links)
    found = [arena.lower(description, f"seed{seed}-{number}") for number, description in enumerate(upper_ones)]
    if seed % 3:
        yield [*found, arena.lower(bottom, f"seed{seed}-bottom")]
        return
    other = arena.directory(f"tmpfs{seed}")
    libc.mount("tmpfs", str(other), "tmpfs")
    try:
        layer = build(other / "layer", bottom)
        arena.guard(layer)
        yield [*found, layer]
        arena.release(layer)
    finally:
        libc.umount(str(other), libc.MNT_DETACH)
