"""A layer that may not answer is asked by a thread before the loop asks it (core/disk/remote.py).

Only what needs such a layer waits for the thread. Which parts of it a request needs is said by its kind and by the
numbers and names in it, for which both adapters have the same order: a directory, and names in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack

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


class Question:
    """What has to be answered before a request is dealt with.

    Args:
        asked: what is asked for.
        opens, lists: as Asked.look.
    """

    __slots__ = ("_asked", "_lists", "_opens")

    def __init__(self, asked: Iterable[Asked], *, opens: bool, lists: bool) -> None:
        self._asked = list(asked)
        self._opens = opens
        self._lists = lists

    def put(self, end: ExitStack) -> None:
        """Ask; made in a thread, which nobody may wait for any more when it ends.

        Args:
            end: closes the descriptors.
        """
        with end:
            for asked in self._asked:
                asked.look(opens=self._opens, lists=self._lists)

    def hold(self) -> ExitStack:
        """Open descriptors of its own: the layers may be closed before the thread ends.

        Raises:
            OSError: EMFILE.
        """
        with ExitStack() as held:
            for place, asked in enumerate(self._asked):
                fd = os.dup(asked.root_fd)
                held.callback(os.close, fd)
                self._asked[place] = asked._replace(root_fd=fd)
            return held.pop_all()


class Opening(Question):
    """A question that is to be answered with a descriptor.

    Attributes:
        fd: to read from; None where there is none.
    """

    __slots__ = ("fd",)

    def __init__(self, asked: Asked) -> None:
        super().__init__([asked], opens=True, lists=False)
        self.fd: int | None = None

    def put(self, end: ExitStack) -> None:
        """As Question.put."""
        with end:
            self.fd = self._asked[0].open()


class Ahead:
    """The questions of one mount.

    Args:
        workers: whose threads ask, and close files of remote layers.

    Attributes:
        needed: a lower may not answer.
    """

    def __init__(self, union: Union, workers: Workers) -> None:
        self.needed = False
        self._union = union
        self._workers = workers

    def begin(self) -> None:
        """Find out; called when the loop is about to run, and when a lower was added."""
        self.needed = self._union.has_remote_lowers
        self._union.close_elsewhere(self._workers.close)

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
                asked += self._union.remote_parts(number, name, whole=whole)
            except OSError:
                continue  # whoever deals with the request says so
        if not asked:
            return None
        return Question(asked, opens=kind not in _NOT_OPENED, lists=lists)

    async def ask(self, question: Question) -> None:
        """Wait until the layers have answered."""
        try:
            held = question.hold()
        except OSError:
            return  # without a descriptor the loop asks, as it does for all other layers
        await self._workers.ask(question.put, held)

    def lies_far(self, number: int) -> bool:
        """Whether a file has to be opened by `opened`.

        Raises:
            OSError: as Union.inode.
        """
        return self.needed and bool(self._union.remote_parts(number, b"", whole=False))

    async def opened(self, number: int) -> int | None:
        """A descriptor to read a file from, which was opened where the file lay, and may be anything now; None where
        that does not work.

        Raises:
            OSError: as Union.inode.
        """
        parts = self._union.remote_parts(number, b"", whole=False)
        if len(parts) != 1:
            await self.ask(Question(parts, opens=True, lists=False))
            return None
        opening = Opening(parts[0])
        try:
            held = opening.hold()
        except OSError:
            return None
        await self._workers.ask(opening.put, held)
        return opening.fd


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
