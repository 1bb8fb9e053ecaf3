"""Copy-ups under way: one at a time for each file, the bytes moved in a worker thread."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from fuseunion.core.ops.attributes import Change
from fuseunion.core.tree.file import File
from fuseunion.core.union import Union
from fuseunion.engines.fuse.serving.leases import Patience
from fuseunion.engines.fuse.serving.reader import Reader
from fuseunion.engines.fuse.serving.workers import COPIES, Workers
from fuseunion.engines.fuse.wire.native.device import device

_AT_ONCE = COPIES - 1


class CopyUps:
    """The copy-ups of one mount.

    `_under_way` holds an event for each: a caller that needs the same file waits for it and looks again, since it
    may have failed.

    Args:
        workers: whose threads move the data.
        reader: what knows whether data would have to be waited for.

    Attributes:
        count: how many files were copied up.
    """

    __slots__ = ("_reader", "_under_way", "_union", "_workers", "count")

    def __init__(self, union: Union, workers: Workers, reader: Reader) -> None:
        self._union = union
        self._workers = workers
        self._reader = reader
        self._under_way: dict[int, trio.Event] = {}
        self.count = 0

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
        if self._copied_plainly(file, change):
            self.count += 1
            return True
        if not self._union.is_copied_quickly(file):
            return None
        try:
            job = self._union.copy_job(file, change)
        except BlockingIOError:
            return None
        if job is None:
            self.count += 1
            return True
        try:
            if not job.quick or self._would_wait(job.source, job.size):
                return None
            job.move()
            job.publish()
        finally:
            job.close()
        self.count += 1
        return True

    def _copied_plainly(self, file: File, change: Change | None) -> bool:
        """Copy a file up in one call, if it is that simple."""
        if device is None:
            return False
        plain = self._union.plain_copy(file, change)
        if plain is None:
            return False
        made = device.copy_plain(*plain, self._reader.may_wait(plain.device))
        if made is None:
            return False
        copy_device, number, times_kept = made
        self._union.plainly_copied(file, copy_device, number, times_kept=times_kept)
        return True

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
            try:
                job = self._union.copy_job(file, change)
            except BlockingIOError as error:
                await patience.wait(error)
                continue
            if job is None:
                self.count += 1
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
            self.count += 1
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
