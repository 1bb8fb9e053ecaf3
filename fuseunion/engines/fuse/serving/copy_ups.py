"""Copy-ups under way: one at a time for each file, the bytes moved in a worker thread."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Protocol, TypeAlias

import trio

from fuseunion.core.ops.attributes import Change
from fuseunion.core.ops.copy_up.plain import Wish, wish_of
from fuseunion.core.tree.file import File
from fuseunion.core.union import Union
from fuseunion.engines.fuse.asking.watching.copy_up_log import Begun, CopyUpLog
from fuseunion.engines.fuse.serving.plain_job import PlainJob, plain_job
from fuseunion.engines.fuse.serving.waiting.leases import Patience
from fuseunion.engines.fuse.serving.waiting.reader import Reader
from fuseunion.engines.fuse.serving.waiting.workers import COPIES, Workers
from fuseunion.engines.fuse.wire.native.device import device

_AT_ONCE = COPIES - 1

Copied: TypeAlias = tuple[bytes, int]
"""A copy that was made in one call: its entry (wire/entries.py), empty where it could not be looked at; its descriptor,
which is the caller's, -1 where it was not asked for."""


class Job(Protocol):
    """A copy-up that waits, as CopyJob, FillJob and PlainJob are (Union.copy_job, plain_job.py)."""

    source: int
    size: int

    @property
    def quick(self) -> bool: ...

    def move(self) -> None: ...

    def publish(self) -> None: ...

    def close(self) -> None: ...


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

    def now(self, file: File, change: Change | None = None, *, leaves: bool = False) -> bool | None:
        """Copy a file up at once, if that takes no longer than a usual request. Arguments and errors as of `done`.

        Args:
            leaves: as of PlainCopies.of.

        Returns:
            True when the change was made with the copy; False when it is still to be made, because the file is in the
            upper already; None when it takes longer.
        """
        if file.in_upper:
            return False
        if file.ino in self._under_way:
            return None
        wish = wish_of(change) if device is not None else None
        if wish is not None and self.plainly(file, wish, leaves=leaves) is not None:
            return True
        if not self._union.is_copied_quickly(file, change):
            return None
        begun = self.log.begin()
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

    def plainly(self, file: File, wish: Wish, *, keeps: bool = False, leaves: bool = False) -> Copied | None:
        """Copy a file up in one call, if that is simple and waits for nothing. Precondition: it is not in the upper.

        Args:
            wish: what the copy is to have.
            keeps: leave it open, for reading and writing.
            leaves: as of PlainCopies.of.

        Returns:
            None where nothing was done.

        Raises:
            OSError: as RealDir.fd.
        """
        if device is None or file.ino in self._under_way:
            return None
        copies = self._union.plain_copies
        plain = None if copies.waits else copies.of(file, leaves=leaves)
        if plain is None:
            return None
        begun = self.log.begin()
        made = device.copy_plain(plain, wish, self._reader.may_wait(plain[2], plain[0]), keeps)
        if made is None:
            return None
        entry, copy_device, number, size, times_kept, fd = made
        copies.made(file, copy_device, number, times_kept=times_kept, leaves=leaves)
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
                job = self._job(file, change)
            except BlockingIOError as error:
                await patience.wait(error)
                continue
            if job is None:
                self.log.add(file, 0, begun)
                return True
            with ExitStack() as end:
                end.callback(job.close)
                self._begin(file, end)
                if job.quick and not self._would_wait(job.source, job.size):
                    job.move()
                elif isinstance(job, PlainJob):
                    await self._workers.put_on_disk((job.fd,))
                else:
                    await self._workers.copy(job.move)
                job.publish()
            self.log.add(file, job.size, begun)
            return True
        return False

    def _begin(self, file: File, end: ExitStack) -> None:
        """Say until the end of a block that a file is being copied up.

        Comes after what closes descriptors, which can fail: nobody may wait for ever.
        """
        event = self._under_way[file.ino] = trio.Event()

        def over() -> None:
            del self._under_way[file.ino]
            event.set()

        end.callback(over)

    def _job(self, file: File, change: Change | None) -> Job | None:
        """Begin a copy-up that has to wait. Returns and raises as Union.copy_job."""
        plain = self._plain_job(file, change)
        return plain if plain is not None else self._union.copy_job(file, change)

    def _plain_job(self, file: File, change: Change | None, *, leaves: bool = False) -> PlainJob | None:
        """As `_job`; None for one that is not simple."""
        wish = wish_of(change)
        if device is None or wish is None:
            return None
        return plain_job(device, self._union, self._reader, file, wish, leaves=leaves)

    async def all_done(self, files: Sequence[File]) -> None:
        """Return when files are in the upper that are going to leave the place of their lowers.

        Those that are simple are put on disk together; of the others some are copied at a time: the disk then puts them
        on its journal together, and a thread is left for others.

        Raises:
            OSError: as `done`, of the first that failed; nothing is under way any more.
        """
        failures: list[OSError] = []

        async def copied(file: File) -> None:
            try:
                await self.done(file)
            except OSError as error:
                failures.append(error)

        slow = await self._together([file for file in files if self.now(file, leaves=True) is None])
        for start in range(0, len(slow), _AT_ONCE):
            async with trio.open_nursery() as nursery:
                for file in slow[start : start + _AT_ONCE]:
                    nursery.start_soon(copied, file)
            if failures:
                raise failures[0]

    async def _together(self, files: Sequence[File]) -> list[File]:
        """Copy files up that are simple, and put them on disk before one of them is shown.

        Returns:
            The others.

        Raises:
            OSError: as `done`, of the first that failed; nothing is under way any more.
        """
        others: list[File] = []
        jobs: list[tuple[File, Begun, PlainJob]] = []
        with ExitStack() as end:
            for file in files:
                job = None
                if not self.is_under_way(file):
                    with suppress(OSError):  # no descriptor is left for so many at a time
                        job = self._plain_job(file, None, leaves=True)
                if job is None:
                    others.append(file)
                    continue
                end.callback(job.close)
                self._begin(file, end)
                jobs.append((file, self.log.begin(), job))
            if jobs:
                await self._workers.put_on_disk(tuple(job.fd for _, _, job in jobs))
            for file, begun, job in jobs:
                job.publish()
                self.log.add(file, job.size, begun)
        return others
