"""What every part of the core works on: the layers, the work area, the inodes, the settings."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fuseunion.core.copying.copy_data import Unshared
from fuseunion.core.disk.access import LayerAccess
from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.work import WorkDirectory
from fuseunion.core.format.numbers import ROOT, Numbers
from fuseunion.core.ids.identity import IDENTITY, Identity
from fuseunion.core.marks.holders import RememberedHolders
from fuseunion.core.marks.link_index import LinkIndex
from fuseunion.core.marks.origin_mark import OriginReader
from fuseunion.core.marks.whiteout_writer import WhiteoutWriter
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.inode import Inode
from fuseunion.core.tree.place import InLower
from fuseunion.core.tree.table import InodeTable
from fuseunion.linux.os_error import os_error


class Settings(NamedTuple):
    """How a union behaves.

    Attributes:
        volatile: never sync (the option of overlayfs).
        acl: POSIX ACLs are kept and inherited.
        xattrs: extended attributes are offered.
        umask_pending: modes of new objects arrive without the caller's umask applied (a mount with MS_POSIXACL),
            so that default ACLs are inherited exactly.
        identity: the id maps.
        static_nlink: every directory shows one link (fuse-overlayfs(1)).
        owner_optional: what is copied up gets as much of its owner as the user can give (metadata.chown), and is never
            refused for the rest. For trees whose owner nobody expects to be kept, as a ranch's.
        redirect_dir: directories of lowers are renamed by a redirect (ops/moving/redirect.py).
        metacopy: what changes no data copies none (ops/copy_up/data.py), and marks in the upper are believed
            (marks/metacopy.py).
    """

    volatile: bool = False
    acl: bool = True
    xattrs: bool = True
    umask_pending: bool = False
    identity: Identity = IDENTITY
    static_nlink: bool = False
    owner_optional: bool = False
    redirect_dir: bool = False
    metacopy: bool = False


class Upper:
    """The writable side: the upper layer, its work directory and the writers that belong to them."""

    __slots__ = ("layer", "links", "unshared", "whiteouts", "work")

    def __init__(self, layer: Layer, work: WorkDirectory) -> None:
        self.layer = layer
        self.work = work
        self.links = LinkIndex(work)
        self.whiteouts = WhiteoutWriter(work)
        self.unshared = Unshared()
        layer.keeps_removed = work.capabilities.keeps_removed

    def close(self) -> None:
        """Leave index and work directory in order."""
        try:
            self.links.close()
        except OSError as error:
            logging.getLogger("fuseunion.links").warning("cannot close the link index: %s", error)
        self.work.close()


class State:
    """Everything of one union.

    Attributes:
        lowers: topmost first; others only once one is added (ops/live/addition.py).
        restacked: is told of each directory that got a part in the upper, before anything is made there; that the
            lowers left; that was removed, unless it was empty and the upper's alone, and ended with its name.
    """

    __slots__ = (
        "descriptors",
        "gid",
        "holders",
        "log",
        "lowers",
        "numbers",
        "origins",
        "restacked",
        "root",
        "settings",
        "table",
        "uid",
        "upper",
    )

    def __init__(self, lowers: Sequence[Layer], upper: Upper | None, settings: Settings) -> None:
        self.lowers = tuple(lowers)
        self.upper = upper
        self.settings = settings
        self.log = logging.getLogger("fuseunion.core")
        self.restacked: Callable[[Directory], None] = lambda _directory: None
        # What the upper's filesystem gives to an object that we make.
        self.uid = os.geteuid()
        self.gid = os.getegid()
        self.descriptors = (upper.layer if upper is not None else self.lowers[0]).descriptors
        devices = [layer.st_dev for layer in reversed(self.lowers)]
        if upper is not None:
            devices.append(upper.layer.st_dev)
        self.numbers = Numbers(devices)
        self.holders = RememberedHolders()
        roots: tuple[RealDir, ...] = tuple(layer.root for layer in self.lowers)
        self.origins = OriginReader(roots, self.numbers)
        upper_root = upper.layer.root if upper is not None else None
        self.root = Directory(ROOT, None, b"", upper_root, roots)
        self.table = InodeTable(self.root, self.numbers, upper.layer.ownership if upper is not None else None)

    def layer_of(self, inode: Inode) -> LayerAccess:
        """The layer that gives an inode its attributes."""
        if isinstance(inode, Directory):
            return inode.top.layer
        assert isinstance(inode, File)
        place = inode.place
        return place.real.layer if isinstance(place, InLower) else self.writable().layer

    def writable(self) -> Upper:
        """The writable side.

        Raises:
            OSError: EROFS when the union has none.
        """
        if self.upper is None:
            raise os_error(errno.EROFS)
        return self.upper
