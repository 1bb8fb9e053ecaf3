"""A copy-up that needs nothing decided, where it has to be put on disk: in two calls, between which a thread waits."""

from __future__ import annotations

import os
from contextlib import ExitStack
from types import ModuleType

from fuseunion.core.ops.copy_up.plain import Wish
from fuseunion.core.tree.file import File
from fuseunion.core.union import Union
from fuseunion.engines.fuse.serving.waiting.reader import Reader


def plain_job(
    device: ModuleType, union: Union, reader: Reader, file: File, wish: Wish, *, leaves: bool
) -> PlainJob | None:
    """Prepare the copy-up of a file, if it is that simple, and waits for nothing but the disk that it is to be on.

    Precondition: it is not in the upper.

    Args:
        device: the extension.
        reader: what knows whether data would have to be waited for.
        wish: what the copy is to have.
        leaves: as of PlainCopies.of.

    Raises:
        OSError: ENFILE when too many are under way; as RealDir.fd.
    """
    copies = union.plain_copies
    plain = copies.of(file, leaves=leaves) if copies.waits else None
    if plain is None:
        return None
    copies.begin()
    with ExitStack() as end:
        end.callback(copies.end, None)
        made: tuple[int, int, int, int] | None = device.prepare_plain(plain, wish, reader.may_wait(plain[2], plain[0]))
        if made is None:
            return None
        end.pop_all()
    return PlainJob(device, union, file, plain[5], made, leaves=leaves)


class PlainJob:
    """To be used as a CopyJob (core/ops/copy_up/files.py), whose attributes it has.

    Args:
        temporary: the name of the copy in work.
        made: a descriptor of it, which belongs to this object; its st_dev and st_ino; how many bytes were copied.
        leaves: its mark knows the path.

    Attributes:
        fd: that descriptor.
    """

    source = -1

    __slots__ = ("_copies", "_device", "_file", "_id", "_leaves", "_temporary", "fd", "size")

    def __init__(
        self,
        device: ModuleType,
        union: Union,
        file: File,
        temporary: bytes,
        made: tuple[int, int, int, int],
        *,
        leaves: bool,
    ) -> None:
        self._device = device
        self._copies = union.plain_copies
        self._file = file
        self._temporary: bytes | None = temporary
        self.fd, self.size = made[0], made[3]
        self._id = made[1:3]
        self._leaves = leaves

    @property
    def quick(self) -> bool:
        """There is nothing to wait for."""
        return not self.size

    def move(self) -> None:
        """Nothing is left to be moved; but it has to be put on disk, unless it is `quick`."""

    def publish(self) -> None:
        """Show the copy; the file may have been opened or removed in the meantime.

        Raises:
            OSError: nothing has changed then.
        """
        assert self._temporary is not None
        copies = self._copies
        target = copies.target(self._file)
        times_kept = target and self._device.show_plain(target[0], self._temporary, *target[1:])
        if times_kept is None:
            copies.show(self._file, self._temporary, self.fd)
        else:
            copies.made(self._file, *self._id, times_kept=times_kept, leaves=self._leaves)
        self._temporary = None
        for handle in self._file.handles:
            handle.switch(self.fd)

    def close(self) -> None:
        """Undo what is not published, and close the descriptor. Called once."""
        self._copies.end(self._temporary)
        os.close(self.fd)
