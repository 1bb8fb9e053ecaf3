"""A layer that may not answer is asked by a thread before the loop asks it (core/disk/remote.py).

Only what needs such a layer waits for the thread. Which parts of it a request needs is said by its kind and by the
numbers and names in it, for which both adapters have the same order: a directory, and names in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import pyfuse3

from fuseunion.core.disk.remote import Asked
from fuseunion.core.union import Union
from fuseunion.engines.fuse.serving.waiting.workers import Workers

_NEVER = frozenset({
    "forget", "flush", "release", "releasedir", "readdir", "fsyncdir", "read", "lseek", "fsync",
})  # fmt: skip
"""What asks no lower for anything but for what was, or is, asked for by opening something (`Ahead.opened`)."""

_OF_NAMES = frozenset({"lookup", "mknod", "mkdir", "symlink", "unlink", "rmdir", "rename", "link", "create"})

_NOT_OPENED = frozenset({
    "lookup", "getattr", "readlink", "access", "statfs", "getxattr", "listxattr", "opendir", "readdirplus", "mknod",
    "mkdir", "symlink", "tmpfile", "unlink", "rmdir", "create",
})  # fmt: skip
"""What opens no file of a lower, neither to read it nor to copy it up."""


class Question(NamedTuple):
    """What has to be answered before a request is dealt with.

    Attributes:
        asked: what is asked for.
        opens, lists: as of Asked.look.
    """

    asked: list[Asked]
    opens: bool
    lists: bool = False

    def put(self) -> None:
        """Ask; made in a thread, for whose end nobody may wait any more when it comes."""
        for asked in self.asked:
            asked.look(opens=self.opens, lists=self.lists)


class Ahead:
    """The questions of one mount.

    Threads reach remote layers by descriptors that are never closed: one that hangs may be left behind, and go on when
    the layers were closed.

    Args:
        workers: whose threads ask, and close files of remote layers.

    Attributes:
        needed: a lower may not answer.
        on_begin: called when there is more to ask; set by the adapter.
    """

    def __init__(self, union: Union, workers: Workers) -> None:
        self.needed = False
        self.on_begin: Callable[[], None] = lambda: None
        self._union = union
        self._workers = workers
        self._roots: dict[int, int] = {}  # a layer's descriptor of its root -> the threads' own

    def begin(self) -> None:
        """Find out; called when the loop is about to run, and when a lower was added."""
        for layer in self._union.remote_lowers:
            if layer.root_fd in self._roots:
                continue
            try:
                self._roots[layer.root_fd] = os.dup(layer.root_fd)
            except OSError:
                layer.remote = False  # without a descriptor the loop asks, as it does for all others
                continue
            layer.close_file = self._workers.close
            self.needed = True
        if self.needed:
            self.on_begin()

    def question(self, kind: str, arguments: tuple[object, ...]) -> Question | None:
        """What to ask before a request is dealt with; None where no remote layer takes part.

        Args:
            kind: what the request is called.
            arguments: of its handler; an open file is said by the number of its inode.
        """
        if kind in _NEVER:
            return None
        asked: list[Asked] = []
        lists = kind == "opendir" or (kind == "readdirplus" and not arguments[1])
        whole = lists or (kind in _OF_NAMES and kind != "lookup")
        for number, name in _sought(kind, arguments):
            try:
                asked += self._parts(number, name, whole=whole)
            except OSError:
                continue  # whoever deals with the request says so
        return Question(asked, kind not in _NOT_OPENED, lists) if asked else None

    async def ask(self, question: Question) -> None:
        """Wait until the layers have answered."""
        await self._workers.ask(question.put)

    def lies_far(self, number: int) -> bool:
        """Whether a part of an inode lies where nobody may answer; a file then has to be opened by `opened`.

        Raises:
            OSError: as Union.inode.
        """
        return self.needed and bool(self._parts(number))

    async def opened(self, number: int) -> int | None:
        """A descriptor to read a file from, which was opened where the file lay, and may be anything now; None where
        that does not work.

        Raises:
            OSError: as Union.inode.
        """
        parts = self._parts(number)
        if len(parts) != 1:
            await self.ask(Question(parts, opens=True))
            return None
        return await self._workers.ask(parts[0].open)

    def _parts(self, number: int, name: bytes = b"", *, whole: bool = False) -> list[Asked]:
        parts = self._union.remote_parts(number, name, whole=whole)
        return [part._replace(root_fd=self._roots[part.root_fd]) for part in parts]


def _sought(kind: str, arguments: tuple[object, ...]) -> list[tuple[int, bytes]]:
    """The inodes that a request is about, and the names in them; b"" for the inode itself."""
    if kind == "statfs":
        return [(pyfuse3.ROOT_INODE, b"")]
    numbers = [argument for argument in arguments if isinstance(argument, int)]
    if kind == "copy_file_range":
        return [(numbers[0], b""), (numbers[5], b"")]
    if kind not in _OF_NAMES:
        return [(numbers[0], b"")]
    names = [argument for argument in arguments if isinstance(argument, bytes)]
    if kind == "rename":
        return list(zip(numbers, names, strict=False))[:2]
    if kind == "link":
        return [(numbers[0], b""), (numbers[1], b""), (numbers[0], names[0]), (numbers[1], names[0])]
    return [(numbers[0], names[0])]
