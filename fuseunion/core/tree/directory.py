"""A directory of the merged tree: a stack of real directories, the upper's (if any) apart from the lowers', topmost
first."""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.format.numbers import Ino
from fuseunion.core.marks.holders import Holders
from fuseunion.core.tree.inode import Inode
from fuseunion.linux.objects.real_object import RealObject


class Names(list[bytes]):
    """A list of the names in a directory, each once. Nobody changes it: all who list the directory share it."""

    __slots__ = ("__weakref__",)


class Directory(Inode):
    """A directory of the merged tree.

    Attributes:
        changes: goes up with every change of the directory, and so of the names in it.
        holders: which of the lowers hold a name, where many take part; None before they were asked.
    """

    __slots__ = (
        "_names",
        "_removed",
        "changes",
        "children",
        "default_acl",
        "holders",
        "lowers",
        "name",
        "parent",
        "upper",
    )

    def __init__(
        self,
        ino: Ino,
        parent: Directory | None,
        name: bytes,
        upper: RealDir | None,
        lowers: tuple[RealDir, ...],
    ) -> None:
        super().__init__(ino, stat.S_IFDIR)
        self.parent = parent
        self.name = name
        self.upper = upper
        self.lowers = lowers
        self.children: dict[bytes, Inode] = {}
        self.default_acl: bytes | None = None  # b"" when there is none, None when not yet asked
        self._removed = False
        self.changes = 0
        self.holders: Holders | None = None
        self._names: weakref.ref[Names] | None = None

    def stale(self) -> None:
        super().stale()
        self.changes += 1
        self._names = None

    @property
    def listed(self) -> Names | None:
        """The names in the directory, if somebody has listed it since the last change, and still needs them."""
        return None if self._names is None else self._names()

    def share(self, names: Names) -> None:
        """The directory was listed, and has not changed meanwhile."""
        self._names = weakref.ref(names)

    @property
    def removed(self) -> bool:
        return self._removed

    def detach(self) -> None:
        """The lowers take no part in it any more."""
        for real in self.lowers:
            real.close()
        self.lowers = ()
        self.stale()

    def made_of(self, lowers: tuple[RealDir, ...]) -> None:
        """The lowers have others in its place now."""
        self.lowers = lowers
        self.stale()

    def mark_removed(self) -> None:
        """The directory was deleted; it stays usable for those who have it open."""
        self._removed = True
        self.stale()

    @property
    def exchanged(self) -> bool:
        for real in self.lowers:  # asked before each lookup, of perhaps hundreds
            if real.exchanged:
                return True
        return self.upper is not None and self.upper.exchanged

    def recognise(self, st: os.stat_result) -> None:
        self.top.recognise(st)

    def check(self) -> None:
        """Refuse a directory of which a part was exchanged behind our back; what cannot be opened is not known to be.

        Raises:
            OSError: ESTALE.
        """
        for real in self.layers():
            try:
                real.fd()
            except OSError as error:
                if error.errno == errno.ESTALE:
                    raise

    def renamed(self, parent: Directory, name: bytes) -> None:
        """The directory, which is in the upper, has another name."""
        assert self.upper is not None and parent.upper is not None
        self.parent, self.name = parent, name
        self.upper.parent, self.upper.name = parent.upper, name
        self.stale()

    def names(self) -> Iterator[tuple[Directory, bytes]]:
        if self.parent is not None and not self._removed:
            yield self.parent, self.name

    @property
    def top(self) -> RealDir:
        """The real directory that gives the attributes."""
        return self.upper if self.upper is not None else self.lowers[0]

    @property
    def is_merged(self) -> bool:
        """True when more than one real directory takes part."""
        return len(self.lowers) + (self.upper is not None) > 1

    def layers(self) -> tuple[RealDir, ...]:
        """The stack, topmost first."""
        return self.lowers if self.upper is None else (self.upper, *self.lowers)

    @contextmanager
    def grasp(self) -> Iterator[RealObject]:
        with self.top.grasp() as itself:
            yield itself

    def real_stat(self) -> os.stat_result:
        """fstat of the real directory that gives the attributes."""
        return self.top.own_stat()
