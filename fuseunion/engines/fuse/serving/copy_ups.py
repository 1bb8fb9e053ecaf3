"""Copy-ups under way: one at a time for each file, the bytes moved in a worker thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import trio

from fuseunion.core.ops.attributes import Change
from fuseunion.core.ops.copy_up.plain import Wish, wish_of
from fuseunion.core.tree.file import File
from fuseunion.core.union import Union
from fuseunion.engines.fuse.asking.watching.copy_up_log import CopyUpLog
from fuseunion.engines.fuse.serving.waiting.leases import Patience
from fuseunion.engines.fuse.serving.waiting.reader import Reader
from fuseunion.engines.fuse.serving.waiting.workers import COPIES, Workers
from fuseunion.engines.fuse.wire.native.device import device

_AT_ONCE = COPIES - 1

Copied: TypeAlias = tuple[bytes, int]
"""A copy that was made in one call: its entry (wire/entries.py), empty where it could not be looked at; its descriptor,
which is the caller's, -1 where it was not asked for."""


class CopyUps:
    """The copy-ups of one mount.

    `_under_way` holds an event for each: a caller that needs the same file waits for it and looks again, since it
    may have failed.

    Args:
        workers: whose threads move the data.
        reader: what knows whether data would have to be waited for.

    Attributes:
        log: the last of them.
    """

    __slots__ = ("_reader", "_under_way", "_union", "_workers", "log")

    def __init__(self, union: Union, workers: Workers, reader: Reader) -> None:
        self._union = union
        self._workers = workers
        self._reader = reader
        self._under_way: dict[int, trio.Event] = {}
        self.log = CopyUpLog()

    def is_under_way(self, file: File) -> bool:
        """Whether a file is being copied up."""
        return file.ino in self._under_way

    def now(self, file: File, change: Change | None = None) -> bool | None:
        """Copy a file up at once, if that takes no longer than a usual request. Arguments and errors as of `done`.

        Returns:
            True when the change was made with the copy; False when it is still to be made, because the file is in the
            upper already; None when it takes longer.
        """
        if file.in_upper:
            return False
        if file.ino in self._under_way:
            return None
        wish = wish_of(change) if device is not None else None
        if wish is not None and self.plainly(file, wish) is not None:
            return True
        begun = self.log.begin()
        if not self._union.is_copied_quickly(file):
            return None
        try:
            job = self._union.copy_job(file, change)
        except BlockingIOError:
            return None
        if job is None:
            self.log.add(file, 0, begun)
            return True
        try:
            if not job.quick or self._would_wait(job.source, job.size):
                return None
            job.move()
            job.publish()
        finally:
            job.close()
        self.log.add(file, job.size, begun)
        return True

    def plainly(self, file: File, wish: Wish, *, keeps: bool = False) -> Copied | None:
        """Copy a file up in one call, if it is that simple. Precondition: it is not in the upper.

        Args:
            wish: what the copy is to have.
            keeps: leave it open, for reading and writing.

        Returns:
            None where nothing was done.

        Raises:
            OSError: as RealDir.fd.
        """
        if device is None or file.ino in self._under_way:
            return None
        copies = self._union.plain_copies
        plain = copies.of(file)
        if plain is None:
            return None
        begun = self.log.begin()
        made = device.copy_plain(plain, wish, self._reader.may_wait(plain[2]), keeps)
        if made is None:
            return None
        entry, copy_device, number, size, times_kept, fd = made
        copies.made(file, copy_device, number, times_kept=times_kept)
        self.log.add(file, size, begun)
        return entry, fd

    def _would_wait(self, source: int, size: int) -> bool:
        return bool(size) and self._reader.would_wait(source, size)

    async def done(self, file: File, change: Change | None = None) -> bool:
        """Return when the file is in the upper.

        Args:
            change: what the copy-up is for; made to the copy before that is shown.

        Returns:
            True when the change was made with the copy; else it is still to be made.

        Raises:
            OSError: as Union.copy_job and CopyJob.
        """
        patience = Patience()
        while not file.in_upper:
            under_way = self._under_way.get(file.ino)
            if under_way is not None:
                await under_way.wait()
                continue
            begun = self.log.begin()
            try:
                job = self._union.copy_job(file, change)
            except BlockingIOError as error:
                await patience.wait(error)
                continue
            if job is None:
                self.log.add(file, 0, begun)
                return True
            event = self._under_way[file.ino] = trio.Event()
            try:
                if job.quick and not self._would_wait(job.source, job.size):
                    job.move()
                else:
                    await self._workers.copy(job.move)
                job.publish()
            finally:
                # Before the close, which can fail where close(2) does: nobody may wait for ever.
                del self._under_way[file.ino]
                event.set()
                job.close()
            self.log.add(file, job.size, begun)
            return True
        return False

    async def all_done(self, files: Sequence[File]) -> None:
        """Return when files are in the upper.

        Some are copied at a time: the disk then puts them on its journal together. A thread is left for others.

        Raises:
            OSError: as `done`, of the first that failed; nothing is under way any more.
        """
        failures: list[OSError] = []

        async def copied(file: File) -> None:
            try:
                await self.done(file)
            except OSError as error:
                failures.append(error)

        slow = [file for file in files if self.now(file) is None]
        for start in range(0, len(slow), _AT_ONCE):
            async with trio.open_nursery() as nursery:
                for file in slow[start : start + _AT_ONCE]:
                    nursery.start_soon(copied, file)
            if failures:
                raise failures[0]
