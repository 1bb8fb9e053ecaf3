"""Objects that a union shows, made again in another directory with everything that they have.

Blocks are shared where the filesystem can. Hard links to the lower are not made, though that would be cheaper: a link
changes the lower's file (its time of change, its count of links), and whoever writes to one then writes to both.
"""

from __future__ import annotations

import os
import stat

from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.linux.objects.recognition import DiskId
from fuseunion.offline.layers import reader
from fuseunion.offline.layers.builder import Builder, Facts
from fuseunion.offline.layers.reader import Entry


class Copier:
    """Copies objects of one union.

    Args:
        union: that shows them.
        builder: makes them again.

    Attributes:
        count: how many were made.
        left_out: the paths of devices that may not be made here.
    """

    def __init__(self, union: Union, builder: Builder) -> None:
        self._union = union
        self._builder = builder
        self._first: dict[DiskId, bytes] = {}
        self.count = 0
        self.left_out: list[bytes] = []

    def copy(self, entry: Entry, path: bytes | None = None) -> None:
        """Make one object, not what is beneath it.

        Args:
            path: where, None for the same path.

        Raises:
            OSError: of the layers, with the path as its filename.
        """
        inode = entry.inode
        assert inode is not None, "a whiteout is no object"
        with reader.named(entry.path):
            self._copy(inode, entry.path if path is None else path)
        self.count += 1

    def facts(self, inode: Inode) -> Facts:
        """What an object has."""
        st = self._union.stat(inode)[0]
        xattrs = reader.xattrs_of(self._union, inode)
        return Facts(st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, xattrs, st.st_rdev, st.st_atime_ns)

    def _copy(self, inode: Inode, path: bytes) -> None:
        builder = self._builder
        identity = reader.identity(self._union, inode)
        if identity is not None:
            first = self._first.setdefault(identity, path)
            if first != path:
                if first not in self.left_out:
                    builder.link(path, first)
                return
        facts = self.facts(inode)
        if isinstance(inode, Directory):
            builder.directory(path, facts)
            return
        assert isinstance(inode, File)
        if stat.S_ISREG(facts.mode):
            fd = self._union.open_for_a_moment(inode)
            try:
                builder.copy(path, facts, fd)
            finally:
                os.close(fd)
        elif stat.S_ISLNK(facts.mode):
            builder.symlink(path, facts, self._union.readlink(inode))
        else:
            try:
                builder.special(path, facts)
            except PermissionError:
                self.left_out.append(path)
