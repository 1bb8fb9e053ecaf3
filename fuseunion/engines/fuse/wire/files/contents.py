"""The handlers of requests for the data of files (answers.py).

Files are named by their inode; `open_files.py` has the descriptors. What a write has to take away, set-ID bits and
capabilities, is taken away here (FUSE_HANDLE_KILLPRIV_V2).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TypeVar

from fuseunion.core.format import xattr_names
from fuseunion.core.ops.attributes import Change, without_privileges
from fuseunion.core.ops.copy_up.plain import NOTHING
from fuseunion.core.tree.file import File
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.serving.waiting.later import Later, ended, now_or_patiently
from fuseunion.engines.fuse.wire import layouts
from fuseunion.engines.fuse.wire.entries import Entries, remembered
from fuseunion.engines.fuse.wire.files.open_files import OpenFile, OpenFiles
from fuseunion.engines.fuse.wire.native.device import device
from fuseunion.engines.fuse.wire.results import Answer, Read, Sender, ToSync, Wanted, done, while_used, zero
from fuseunion.linux import syscalls

T = TypeVar("T")

_SMALL_RANGE = 64 << 10
"""Bytes of a copy_file_range that is made at once, from what is in memory."""

_MOST_AT_ONCE = 64 << 20
"""Bytes of one copy_file_range, or of an fallocate in the loop: so long as others can wait for the thread."""


class Contents:
    """The handlers of one mount.

    Args:
        requests: what they do.
        open_files: of the mount.
        entries: of the mount.
    """

    def __init__(self, requests: Requests, open_files: OpenFiles, entries: Entries) -> None:
        self._requests = requests
        self._union = requests.union
        self._callers = requests.callers
        self._open_files = open_files
        self._entries = entries

    def read(self, number: int, offset: int, size: int) -> Answer:
        file = self._requests.file(number)
        if not offset and number not in self._open_files and not self._requests.ahead.lies_far(number):
            whole = self._read_whole(file, size)
            if whole is not None:
                return whole
        return self._opened(file, lambda opened: self._read_from(opened, offset, size))

    def _read_from(self, opened: OpenFile, offset: int, size: int) -> Read | Later[bytes]:
        data = self._requests.reader.at_once(opened.handle.fd, offset, size)
        self._open_files.share_for_reading(opened)
        if data is not None:
            return bytes(data)
        try:
            return Wanted(os.dup(opened.handle.fd), offset, size)
        except OSError:  # no descriptor is left: then it waits for this one
            call = self._requests.workers.read(os.pread, opened.handle.fd, size, offset)
            return while_used(opened.used(), call)

    def _opened(self, file: File, call: Callable[[OpenFile], T | Later[T]]) -> T | Later[T]:
        """Make a call with a file that was opened for reading, as soon as nobody has a lease on it."""
        if file.ino not in self._open_files and self._requests.ahead.lies_far(file.ino):
            return self._when_opened(self._opened_ahead(file), call)
        opened = now_or_patiently(lambda: self._open_files.reading(file))
        return call(opened) if isinstance(opened, OpenFile) else self._when_opened(opened, call)

    async def _opened_ahead(self, file: File) -> OpenFile:
        """A file of a layer that may not answer, which a thread opens; the loop, where what it opened is another."""
        fd = await self._requests.ahead.opened(file.ino)
        opened = None
        if fd is not None:
            with suppress(OSError):
                opened = self._open_files.take(file, fd)
            if opened is None:
                self._requests.workers.close(fd)
        return opened if opened is not None else await ended(now_or_patiently(lambda: self._open_files.reading(file)))

    async def _when_opened(self, opening: Later[OpenFile], call: Callable[[OpenFile], T | Later[T]]) -> T:
        opened = await opening
        with opened.used():
            return await ended(call(opened))

    def _read_whole(self, file: File, most: int) -> Read | None:
        """All of a small file, which nobody is going to ask for again; None where more has to be said or done."""
        try:
            place = self._union.place_to_open(file)
            if place is not None:
                assert device is not None
                shown = file.ino if self._union.shows_lower_as_it_is(file) else 0
                found = device.read_plain(*place, most, self._requests.reader.may_wait(place[2]), shown)
                if shown:
                    remembered(file)
                if found is not None:
                    return self._read_small(found, most) if isinstance(found, int) else found
            fd = self._union.open_for_a_moment(file)
        except OSError:
            return None
        return self._read_small(fd, most)

    def _read_small(self, fd: int, most: int) -> Read | None:
        """As `_read_whole`, of an open file, which is closed."""
        with ExitStack() as closing:
            closing.callback(os.close, fd)
            size = os.fstat(fd).st_size
            if size >= most:
                return None
            data = self._requests.reader.at_once(fd, 0, size)
            if data is not None:
                return bytes(data)
            closing.pop_all()
            return Wanted(fd, 0, most)

    def write(self, number: int, uid: int, gid: int, pid: int, flags: int, offset: int, data: bytes) -> Answer:
        file = self._requests.file(number)
        if not file.in_upper:
            opened = self._opened_copy(file)
            if opened is not None:
                return layouts.WRITTEN.pack(self._union.write(opened.handle, data, offset), 0)
        return self._with_copy(file, lambda opened: self._write_to(opened, Sender(uid, gid, pid), flags, offset, data))

    def _opened_copy(self, file: File) -> OpenFile | None:
        """A file of a lower after a copy-up in one call, open for what is written next; None where it takes more.

        Such a file has nothing that a write takes away.
        """
        copied = self._requests.copy_ups.plainly(file, NOTHING, keeps=True)
        if copied is None:
            return None
        try:
            handle = self._open_files.retried(lambda: self._union.opened(file, copied[1], writable=True))
        except OSError:
            os.close(copied[1])
            return None
        opened = self._open_files.keep(handle)
        self._open_files.share_new(opened, 0)
        return opened

    def _write_to(self, opened: OpenFile, sender: Sender, flags: int, offset: int, data: bytes) -> bytes:
        if not opened.plain:
            self._data_changes(opened, sender, kills=bool(flags & layouts.WRITE_KILL_SUIDGID))
        self._open_files.share_for_writing(opened)
        return layouts.WRITTEN.pack(self._union.write(opened.handle, data, offset), 0)

    def _with_copy(self, file: File, call: Callable[[OpenFile], T]) -> T | Later[T]:
        """Make a call with a file that was opened for writing, after it was copied up."""
        if file.in_upper or self._requests.copy_ups.now(file) is not None:
            try:
                return call(self._open_files.writing(file))
            except BlockingIOError:
                pass  # somebody has a lease on it
        return self._with_copy_later(file, call)

    async def _with_copy_later(self, file: File, call: Callable[[OpenFile], T]) -> T:
        await self._requests.copy_ups.done(file)
        return call(await ended(now_or_patiently(lambda: self._open_files.writing(file))))

    def _data_changes(self, opened: OpenFile, caller: Sender, *, kills: bool) -> None:
        """Before the data of a file changes: take away what that takes away (fs/inode.c file_remove_privs).

        A real capability goes with the real write. One that is stored is not known to the upper's filesystem.
        """
        file = opened.handle.file
        mode = self._entries.mode(file)
        if mode & (stat.S_ISUID | stat.S_ISGID):
            outsider = self._callers.endangers_setgid(file, mode, caller)
            left = without_privileges(mode, outsider=outsider) if kills or outsider else stat.S_IMODE(mode)
            if left != stat.S_IMODE(mode):
                self._union.setattr(file, Change(mode=left, clear_capability=True))
                self._requests.attributes_changed(file)
        elif self._union.stores_ownership and self._requests.has_xattr(file, xattr_names.CAPABILITY):
            self._union.setattr(file, Change(clear_capability=True))
        else:
            opened.plain = True

    def fsync(self, number: int, data_only: bool) -> Answer:
        return self._opened(self._requests.file(number), lambda opened: self._sync(opened, data_only))

    def _sync(self, opened: OpenFile, data_only: bool) -> Answer:
        handle = opened.handle
        if handle.file.in_upper and not self._union.stores_ownership:
            with suppress(OSError):  # no descriptor is left: then it waits for this one
                return ToSync(os.dup(handle.fd), data_only)
        result = self._requests.fsync(handle.file, handle.fd, data_only=data_only)
        return 0 if result is None else zero(while_used(opened.used(), result))

    def fsyncdir(self, number: int, _data_only: bool) -> Answer:
        directory = self._union.directory(number)
        if self._union.stores_ownership:
            return done(self._requests.fsync_directory(directory))
        fd = self._union.fsync_directory(directory)
        return 0 if fd is None else ToSync(fd, False)

    def lseek(self, number: int, offset: int, whence: int) -> Answer:
        def seek(opened: OpenFile) -> bytes:
            return layouts.OFFSET.pack(os.lseek(opened.handle.fd, offset, whence))

        return self._opened(self._requests.file(number), seek)

    def fallocate(self, number: int, uid: int, gid: int, pid: int, offset: int, length: int, mode: int) -> Answer:
        file = self._requests.file(number)
        sender = Sender(uid, gid, pid)
        if length > _MOST_AT_ONCE:
            return self._allocate_much(file, offset, length, mode, sender)

        def allocate(opened: OpenFile) -> int:
            self._will_allocate(opened, sender)
            syscalls.fallocate(opened.handle.fd, mode, offset, length)
            return 0

        return self._with_copy(file, allocate)

    def _will_allocate(self, opened: OpenFile, sender: Sender) -> None:
        # The request does not say who may keep set-ID bits (fs/fuse/file.c fuse_file_fallocate).
        self._data_changes(opened, sender, kills=not self._callers.keeps_set_id(sender))
        opened.handle.file.stale()

    async def _allocate_much(self, file: File, offset: int, length: int, mode: int, sender: Sender) -> int:
        """What a filesystem in memory takes long for, since it clears each page."""
        await self._requests.copy_ups.done(file)
        opened = await ended(now_or_patiently(lambda: self._open_files.writing(file)))
        with opened.used():
            self._will_allocate(opened, sender)
            await self._requests.workers.read(syscalls.fallocate, opened.handle.fd, mode, offset, length)
            file.stale()
        return 0

    def copy_file_range(
        self, number: int, uid: int, gid: int, pid: int, offset: int, target: int, target_offset: int, length: int
    ) -> Answer:
        source, file = self._requests.file(number), self._requests.file(target)
        sender = Sender(uid, gid, pid)
        copied = self._copy_small_range(source, offset, file, target_offset, length, sender)
        if copied is not None:
            return layouts.WRITTEN.pack(copied, 0)
        return self._copy_range(source, offset, file, target_offset, min(length, _MOST_AT_ONCE), sender)

    def _copy_small_range(
        self, source: File, offset: int, file: File, target_offset: int, length: int, caller: Sender
    ) -> int | None:
        """Copy what takes no longer than a usual request; None for all else."""
        if not file.in_upper:
            return None
        try:
            target = self._open_files.writing(file)
            target.use()  # to open the other may close it, above all where both are one file
            try:
                origin = self._open_files.reading(source)
                fd = origin.handle.fd
                length = min(length, max(os.fstat(fd).st_size - offset, 0))
                if length > _SMALL_RANGE:
                    return None
                self._open_files.share_for_reading(origin)
                if length and not origin.never_waits and self._requests.reader.would_wait(fd, length, offset):
                    return None
                if not target.plain:
                    self._data_changes(target, caller, kills=not self._callers.keeps_set_id(caller))
                file.stale()
                return os.copy_file_range(fd, target.handle.fd, length, offset, target_offset) if length else 0
            finally:
                target.release()
        except BlockingIOError:
            return None  # somebody has a lease

    async def _copy_range(
        self, source: File, offset: int, file: File, target_offset: int, length: int, caller: Sender
    ) -> bytes:
        await self._requests.copy_ups.done(file)
        target = await ended(now_or_patiently(lambda: self._open_files.writing(file)))
        with target.used():
            origin = await ended(now_or_patiently(lambda: self._open_files.reading(source)))
            with origin.used():
                self._data_changes(target, caller, kills=not self._callers.keeps_set_id(caller))
                file.stale()
                copied = await self._requests.workers.read(
                    os.copy_file_range, origin.handle.fd, target.handle.fd, length, offset, target_offset
                )
                file.stale()
        return layouts.WRITTEN.pack(copied, 0)
