"""What all inodes of the merged tree share.

Identity (the number, the kind) never changes; state (where the object lies, which names it has) does: see file.py and
directory.py.

An inode stays in the table (table.py) while the kernel knows it (`nlookup` > 0), while something keeps it (an open
handle, an operation), or, for a directory, while a child of it is in the table.

Cached attributes (`st`, `reply`) are valid until `stale()`: nobody but this daemon may change a layer.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Set
from contextlib import AbstractContextManager

from fuseunion.core.format import xattr_names
from fuseunion.core.format.numbers import Ino
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.linux.os_error import os_error

_NOBODY: frozenset[object] = frozenset()

NONE_ABSENT: Set[bytes] = frozenset()
"""Of an inode that was asked for no attribute that it lacks. One for all: an empty set takes 216 bytes."""

ASKED_OFTEN = frozenset({xattr_names.CAPABILITY, xattr_names.POSIX_ACL_ACCESS, xattr_names.POSIX_ACL_DEFAULT})
"""What the kernel asks for again and again. That they are not there is remembered: nobody sets them behind our back."""

NO_CAPABILITY = frozenset({xattr_names.CAPABILITY})
"""Of one that has no capability, for all that is known."""

NEEDS_NO_PATH = frozenset({xattr_names.CAPABILITY, xattr_names.UNION_ORIGIN})
"""Of one that has no origin mark without a path either: it was made here, and only copies get a mark, or it was copied
because it is to leave its place (core/ops/copy_up)."""

_KINDS = {
    kind: kind
    for kind in (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFCHR,
        stat.S_IFBLK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
    )
}
"""Each a number that all inodes share, where every S_IFMT makes another one of 32 bytes."""


class Inode:
    """What files and directories share."""

    __slots__ = ("_keepers", "absent_xattrs", "ino", "kind", "nlookup", "reply", "st")

    def __init__(self, ino: Ino, kind: int) -> None:
        self.ino = ino
        self.kind = _KINDS.get(kind, kind)  # S_IFMT bits
        self.nlookup = 0
        self.st: os.stat_result | None = None
        self.reply: object | None = None  # the adapter's ready-made answer
        self.absent_xattrs = NONE_ABSENT  # frozensets, or what the adapter knows
        self._keepers: set[object] | frozenset[object] = _NOBODY

    def stale(self) -> None:
        """Something about the inode changed."""
        self.st = None
        self.reply = None

    def forget_answers(self) -> None:
        """Somebody else may have changed its attributes."""
        self.absent_xattrs = NONE_ABSENT

    def may_have(self, xattr: bytes) -> None:
        """An attribute that it lacked may have been set."""
        if xattr in self.absent_xattrs:
            self.absent_xattrs -= {xattr}

    @property
    def removed(self) -> bool:
        """True when no name leads to the inode."""
        raise NotImplementedError

    @property
    def exchanged(self) -> bool:
        """True when a name that it is known by was found to lead elsewhere: the name has to be looked up again."""
        return False

    def recognise(self, st: os.stat_result) -> None:
        """Refuse what a name of the inode leads to if it is another object.

        Args:
            st: of what the name leads to, in the layer that gives the attributes.

        Raises:
            OSError: ESTALE.
        """
        raise NotImplementedError

    def grasp(self) -> AbstractContextManager[RealObject]:
        """The object on disk that gives the attributes, held by a descriptor until the block ends.

        What asks an object for more than lstat, or changes it, does so through this: a name could lie in a directory
        that its owner closed, and most calls would follow a link at the end of a path.
        """
        raise NotImplementedError

    def names(self) -> Iterator[tuple[Inode, bytes]]:
        """The names of the inode that are known, each with the directory that it is in."""
        raise NotImplementedError

    # -- who keeps it in the table -----------------------------------------------------------------------------------

    @property
    def is_kept(self) -> bool:
        """True while a handle or an operation needs the inode."""
        return bool(self._keepers)

    def keep(self, keeper: object) -> None:
        """A handle, or an operation (InodeTable.held), needs the inode until `let_go`."""
        if isinstance(self._keepers, frozenset):
            self._keepers = {keeper}  # most inodes never have one, and an empty set is not small
        else:
            self._keepers.add(keeper)

    def let_go(self, keeper: object) -> None:
        """Undo `keep`; the table then has to drop the inode if nobody else needs it."""
        if not isinstance(self._keepers, frozenset):
            self._keepers.discard(keeper)
            if not self._keepers:
                self._keepers = _NOBODY


class Unreadable(Inode):
    """An object whose marks cannot be understood. It is listed, and every use of it answers an errno."""

    __slots__ = ("code",)

    def __init__(self, ino: Ino, kind: int, code: int) -> None:
        super().__init__(ino, kind)
        self.code = code

    @property
    def removed(self) -> bool:
        return False

    def names(self) -> Iterator[tuple[Inode, bytes]]:
        return iter(())

    def recognise(self, st: os.stat_result) -> None:
        raise os_error(self.code)

    def grasp(self) -> AbstractContextManager[RealObject]:
        raise os_error(self.code)
