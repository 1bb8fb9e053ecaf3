"""The engines by name: the only module that knows which there are.

auto       fuse, else kernel, else ranch
fastest    kernel, else fuse, else ranch
a name     that one or none
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fuseunion.engines.engine import Engine
from fuseunion.linux import mountinfo
from fuseunion.mounting.options import EngineChoice

if TYPE_CHECKING:
    from fuseunion.engines.live import LiveMount

_ORDER = {
    EngineChoice.AUTO: (EngineChoice.FUSE, EngineChoice.KERNEL, EngineChoice.RANCH),
    EngineChoice.FASTEST: (EngineChoice.KERNEL, EngineChoice.FUSE, EngineChoice.RANCH),
}


def order(choice: EngineChoice) -> Sequence[EngineChoice]:
    """The engines that are tried for a value of --engine, in this order."""
    return _ORDER.get(choice, (choice,))


def load(choice: EngineChoice) -> Engine:
    """One engine, imported when it is asked for.

    Args:
        choice: the name of one; not a word for several.
    """
    match choice:
        case EngineChoice.FUSE:
            from fuseunion.engines.fuse.fuse_engine import FuseEngine

            return FuseEngine()
        case EngineChoice.KERNEL:
            from fuseunion.engines.kernel.kernel_engine import KernelEngine

            return KernelEngine()
        case EngineChoice.RANCH:
            from fuseunion.engines.ranch.ranch_engine import RanchEngine

            return RanchEngine()
        case EngineChoice.AUTO | EngineChoice.FASTEST:
            raise ValueError(f"{choice.value} is not one engine")


def every() -> Iterator[Engine]:
    """Every engine there is, each imported when its turn comes."""
    return map(load, order(EngineChoice.AUTO))


def find(given: str) -> tuple[Engine, LiveMount] | None:
    """The engine that shows something at a path, and what it shows; None where none does.

    Args:
        given: the path as the user wrote it.
    """
    path = os.path.realpath(given)
    entry = mountinfo.mount_at(path)
    for engine in every():
        live = engine.find(given, path, entry)
        if live is not None:
            return engine, live
    return None
