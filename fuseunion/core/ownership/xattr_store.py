"""The ownership store of containers/storage and fuse-overlayfs: an extended attribute on the object itself.

Three names are in use. `security.` needs a privileged daemon and exists on every kind of object; `user.` exists on
files and directories only, so the facts of symbolic links go to a companion store, if there is one, or are given up
in silence, as fuse-overlayfs does.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from functools import partial

from fuseunion.core.format import xattr_names
from fuseunion.core.ownership import facts as codec
from fuseunion.core.ownership import stored_names
from fuseunion.core.ownership.facts import Facts
from fuseunion.core.ownership.store import OwnershipStore
from fuseunion.core.ownership.stored_names import OverrideName
from fuseunion.linux.objects.permission import as_owner_of
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.linux.os_error import os_error

_log = logging.getLogger("fuseunion.ownership")

# ENODATA: not stored. EOPNOTSUPP: this object, or a filesystem that takes part in a lower, has no xattrs.
_NOT_STORED = frozenset({errno.ENODATA, errno.EOPNOTSUPP})

# Where the object is somebody else's, who lets nobody read it; EPERM: nor lend the bits. It is listed all the same.
_NOT_TOLD = frozenset({errno.EACCES, errno.EPERM})


class XattrStore(OwnershipStore):
    """Facts in an extended attribute.

    What has got into an upper by another way may forbid its owner to read or write it, and with that its user.*
    attributes (fs/xattr.c xattr_permission): the daemon lends itself the bits (linux/objects/permission.py).

    Args:
        name: the attribute.
        companion: where the facts of objects go that cannot have it; the store owns it.
        foreign: the layer is a lower, in which nothing is lent.
    """

    def __init__(self, name: OverrideName, companion: OwnershipStore | None = None, *, foreign: bool = False) -> None:
        self.name = name
        self.companion = companion
        self._foreign = foreign
        self.needs_paths = companion is not None and companion.needs_paths
        self.label = name if companion is None else f"{name}, {companion.label} for symbolic links"

    def _holds(self, st: os.stat_result) -> bool:
        return self.name is OverrideName.PRIVILEGED or stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)

    def find(self, where: RealObject, st: os.stat_result) -> Facts | None:
        if not self._holds(st):
            return None if self.companion is None else self.companion.find(where, st)
        try:
            value = (
                where.getxattr(self.name) if self._foreign else as_owner_of(where, partial(where.getxattr, self.name))
            )
        except OSError as error:
            if error.errno in _NOT_STORED:
                return None
            if error.errno in _NOT_TOLD and (self._foreign or st.st_uid != os.geteuid()):
                return None
            raise
        return codec.parse(value)

    def store(self, where: RealObject, st: os.stat_result, facts: Facts) -> None:
        if self._holds(st):
            as_owner_of(where, partial(where.setxattr, self.name, codec.unparse(facts)))
        elif facts == Facts.of(st) and self.companion is not None:
            self.companion.forget(st)  # most links are their maker's: they need no row, and a mount no database
        elif self.companion is not None:
            self.companion.store(where, st, facts)
        else:
            _log.debug("the owner %d:%d of inode %d has no place", facts.uid, facts.gid, st.st_ino)

    def xattr_to_disk(self, name: bytes) -> bytes:
        if self.name is not OverrideName.CONTAINERS or name.startswith(stored_names.PREFIX):
            return super().xattr_to_disk(name)
        disk = stored_names.to_disk(name)
        if disk is None:
            raise os_error(errno.EPERM)
        return disk

    def xattr_to_shown(self, disk: bytes) -> bytes | None:
        if self.name is not OverrideName.CONTAINERS:
            return super().xattr_to_shown(disk)
        shown = stored_names.to_shown(disk)
        if shown != disk:
            return shown
        # What the real object has of these is not the user's: a label that a security module gave the daemon's file.
        # Capabilities are: containers/storage unpacks them as they are (Layer.xattr_names).
        hidden = disk.startswith(b"security.") and disk != xattr_names.CAPABILITY
        return None if hidden else super().xattr_to_shown(disk)

    def forget(self, st: os.stat_result) -> None:
        if self.companion is not None and not self._holds(st):
            self.companion.forget(st)

    def sync(self) -> None:
        if self.companion is not None:
            self.companion.sync()

    def close(self) -> None:
        if self.companion is not None:
            self.companion.close()
