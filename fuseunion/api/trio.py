"""`fuseunion.trio.mount`: the same for programs that run in trio.

What waits does so in a thread, and is not abandoned when it is cancelled: a mount that is being made is made, and then
ended.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from fuseunion.api.changes import Changes
from fuseunion.api.mount import AnyPath, Mount, Stats, Value
from fuseunion.api.mount import mount as mount_now


class AsyncMount:
    """One mount; as fuseunion.Mount, which see for attributes and errors.

    Args:
        made: the mount itself.
    """

    def __init__(self, made: Mount) -> None:
        self._made = made
        self.merged: Path = made.merged
        self.upper: Path | None = made.upper
        self.engine: str = made.engine
        self.messages: list[str] = made.messages

    def __fspath__(self) -> str:
        return str(self.merged)

    async def reset(self) -> None:
        """See Mount.reset."""
        await trio.to_thread.run_sync(self._made.reset)

    async def diff(self) -> Changes:
        """See Mount.diff."""
        return await trio.to_thread.run_sync(self._made.diff)

    async def stats(self) -> Stats:
        """See Mount.stats."""
        return await trio.to_thread.run_sync(self._made.stats)


@asynccontextmanager
async def mount(
    lower: AnyPath | Sequence[AnyPath],
    upper: AnyPath | None = None,
    merged: AnyPath | None = None,
    **options: Value,
) -> AsyncIterator[AsyncMount]:
    """A union for the length of an `async with` block; arguments and errors as of fuseunion.mount."""
    made = await trio.to_thread.run_sync(partial(mount_now, lower, upper, merged, **options))
    try:
        yield AsyncMount(made)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(made.close)
