"""The answers to requests for extended attributes.

Most inodes have none, and the kernel remembers nothing of that: it asks for security.capability before each chown and
first write, and who copies or compares a tree asks for the names of each file's. So one call looks whether there are
any (wire/native/plain/xattrs.c), and of an inode that has none the extension answers from then on
(wire/native/repeated/without_xattrs.c).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Iterator, Set

from fuseunion.core.format import xattr_names
from fuseunion.core.ops.xattrs import Where
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import ASKED_OFTEN, Inode
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.serving.waiting.later import Later
from fuseunion.engines.fuse.wire import layouts
from fuseunion.engines.fuse.wire.files.open_files import OpenFiles
from fuseunion.engines.fuse.wire.native.device import compares, device
from fuseunion.engines.fuse.wire.results import Answer, Sender, done
from fuseunion.linux.os_error import os_error

log = logging.getLogger("fuseunion.fuse")

_FIRST, _AT_ONCE = 4, 64
_MOST = 4096
"""Names of a directory whose other files are looked at too."""


class WithoutXattrs(Set[bytes]):
    """What an inode lacks that has no extended attributes at all, in the place of Inode.absent_xattrs. The extension
    may say so for as long as this is there.

    Args:
        number: of the inode.
        absent: the attributes that are asked for again and again, and what else it is known to lack; shared.
    """

    __slots__ = ("_absent", "_number")

    def __init__(self, number: int, absent: frozenset[bytes]) -> None:
        self._number = number
        self._absent = absent
        self.note()

    def note(self) -> None:
        """Tell the extension, whose table may have given the place to another."""
        assert device is not None
        device.note_without_xattrs(self._number)

    def __del__(self) -> None:
        assert device is not None
        device.may_have_xattrs(self._number)

    @classmethod
    def _from_iterable(cls, it: Iterable[bytes]) -> frozenset[bytes]:  # type: ignore[override]
        return frozenset(it)

    def __contains__(self, name: object) -> bool:
        return name in self._absent

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._absent)

    def __len__(self) -> int:
        return len(self._absent)


class Xattrs:
    """The handlers of one mount.

    Args:
        requests: what they do.
        open_files: of the mount.

    Attributes:
        lost_capability: the inode of which the kernel took one away last; -1 before.
    """

    def __init__(self, requests: Requests, open_files: OpenFiles) -> None:
        self._requests = requests
        self._union = requests.union
        self._open_files = open_files
        self.lost_capability = -1
        self._asked_in = -1  # the directory of the last file that was looked at
        self._others: Iterator[bytes] = iter(())  # its names that were not
        self._at_once = _FIRST

    # -- what is not there -------------------------------------------------------------------------------------------

    def getxattr(self, number: int, name: bytes) -> bytes | int | Later[bytes]:
        """The answer to GETXATTR."""
        inode = self._requests.inode(number)
        if name in inode.absent_xattrs:
            self._note_again(inode)
            return errno.ENODATA
        if name in ASKED_OFTEN and self._lacks(inode, name):
            return errno.ENODATA
        return self._requests.getxattr(number, name)

    def listxattr(self, number: int, uid: int) -> bytes:
        """The answer to LISTXATTR."""
        inode = self._requests.inode(number)
        if not self._requests.lists_layers and (self._note_again(inode) or (not compares and self._lacks(inode, b""))):
            return b""
        names = self._requests.listxattr(number, uid)
        if not names and uid == 0 and self._union.lists_all_xattrs(inode):
            self._note(inode)
        return b"".join([name + b"\0" for name in names])

    def _note_again(self, inode: Inode) -> bool:
        """Whether an inode was found to have none, of which the extension is told again: its table may have given the
        place to another."""
        if not isinstance(inode.absent_xattrs, WithoutXattrs):
            return False
        inode.absent_xattrs.note()
        if compares and (names := self._union.listxattr(inode)):
            log.error("inode %d has %r, but was said to have none", inode.ino, names)
        return True

    def _lacks(self, inode: Inode, name: bytes) -> bool:
        """Whether one look shows that an inode lacks an attribute, or any where it is named b''."""
        where = self._union.where_xattrs_are(inode)
        if where is None:
            return False
        real, there, st_dev, st_ino = where
        assert device is not None
        try:
            lacking = device.lacks_attribute(real.fd(), there, st_dev, st_ino, name)
        except OSError:
            return False  # a closed, hidden or covered directory: who holds the object says what is to be said
        if not lacking:
            return False
        if compares and self._requests.has_xattr(inode, name):
            log.error("inode %d has %r, but was said not to", inode.ino, name)
        if lacking != device.ALL:
            self._union.note_absent(inode, {name})
            return True
        self._note(inode)
        if isinstance(inode, File) and not real.layer.remote:
            self._look_around(inode, where)
        return True

    def _note(self, inode: Inode) -> None:
        """An inode has none."""
        absent = self._union.note_absent(inode, ASKED_OFTEN)  # drops a token that is there, before there is another
        if not self._requests.lists_layers:
            inode.absent_xattrs = WithoutXattrs(inode.ino, absent)

    def _look_around(self, file: File, found: Where) -> None:
        """Who asks for a file of a directory may ask for the others that lie beside it: the more, the more were asked
        for."""
        if file.only_name is None:
            return
        directory, _ = file.only_name
        if self._asked_in != directory.ino:
            few = len(directory.children) <= _MOST
            self._asked_in, self._others = directory.ino, iter(list(directory.children) if few else ())
            self._at_once = _FIRST
        real = found[0]
        others: list[File] = []
        places: list[Where] = []
        for name in self._others:
            other = directory.children.get(name)
            if isinstance(other, File) and type(other.absent_xattrs) is not WithoutXattrs:
                where = self._union.where_xattrs_are(other)
                if where is not None and where[0] is real:
                    others.append(other)
                    places.append(where)
            if len(others) == self._at_once:
                break
        self._at_once = min(self._at_once * 2, _AT_ONCE)
        if others:
            assert device is not None
            for other, none in zip(others, device.are_without_xattrs(real.fd(), places), strict=True):
                if none:
                    self._note(other)

    # -- changes -----------------------------------------------------------------------------------------------------

    def setxattr(self, number: int, uid: int, gid: int, pid: int, name: bytes, value: bytes, flags: int) -> Answer:
        """The answer to SETXATTR."""
        if flags & (layouts.XATTR_CREATE | layouts.XATTR_REPLACE):
            self._check_presence(number, name, flags)
        self._open_files.changed(number)
        return done(self._requests.setxattr(number, name, value, Sender(uid, gid, pid)))

    def _check_presence(self, number: int, name: bytes, flags: int) -> None:
        """Raises EEXIST or ENODATA, as setxattr(2) with these flags."""
        try:
            there = self._union.xattr_is_there(self._requests.inode(number), name)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            there = False
        if there and flags & layouts.XATTR_CREATE:
            raise os_error(errno.EEXIST)
        if not there and flags & layouts.XATTR_REPLACE:
            raise os_error(errno.ENODATA)

    def removexattr(self, number: int, name: bytes) -> Answer:
        """The answer to REMOVEXATTR."""
        if name == xattr_names.CAPABILITY:
            self.lost_capability = number
        self._open_files.changed(number)
        return done(self._requests.removexattr(number, name))
