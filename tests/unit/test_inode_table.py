"""The table of inodes: what it takes after most of them were forgotten."""

from __future__ import annotations

import sys

from fuseunion.core.format.numbers import ROOT, Ino, Numbers
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.inode import Unreadable
from fuseunion.core.tree.table import InodeTable

MANY = 100_000


def test_forgotten_inodes_leave_no_room_behind() -> None:
    """A dict keeps the room of all that it ever held."""
    table = InodeTable(Directory(ROOT, None, b"", None, ()), Numbers([1]))
    for _ in range(2):
        for number in range(2, MANY):
            inode = Unreadable(Ino(number), 0, 5)
            table.add(inode)
            table.remember(inode)
        assert sys.getsizeof(table._inodes) > 40 * MANY
        for number in range(2, MANY - 100):
            table.forget(number, 1)
        assert table.size == 101
        assert sys.getsizeof(table._inodes) < 8 * MANY
        assert all(table.find(number) is not None for number in (ROOT, *range(MANY - 100, MANY)))
        for number in range(MANY - 100, MANY):
            table.forget(number, 1)
        assert table.size == 1
