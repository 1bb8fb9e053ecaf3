"""What handlers of requests get besides numbers, and what they give (answers.py)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple, TypeVar

from fuseunion.engines.fuse.serving.waiting.later import Later

T = TypeVar("T")


class Sender(NamedTuple):
    """Who made a request (callers.Caller)."""

    uid: int
    gid: int
    pid: int
    umask: int = 0


class Wanted(NamedTuple):
    """A read that waits for a disk: a thread of the module makes it, answers it, and closes the descriptor."""

    fd: int
    offset: int
    size: int


class ToSync(NamedTuple):
    """What fsync(2) has to wait for: as of Wanted."""

    fd: int
    data_only: bool


Read = bytes | Wanted
Final = Read | int | ToSync
Answer = Final | Later[Final]


def done(result: Later[None] | None) -> int | Later[int]:
    """An answer without a body, once it is done."""
    return 0 if result is None else zero(result)


async def zero(result: Later[None]) -> int:
    """An answer without a body, for what takes a while."""
    await result
    return 0


async def while_used(used: ExitStack, result: Later[T]) -> T:
    """A result for which something is used, which the caller has begun."""
    with used:
        return await result
