"""Owners of symbolic links in an upper that lies in an image: they are the real ones.

Whose image it is may give everything in it to anybody. So beside the attributes of files and directories nothing has to
be kept elsewhere, where the image would lack it.
"""

from __future__ import annotations

import errno
import os

from fuseunion.core.ownership.facts import Facts
from fuseunion.core.ownership.store import OwnershipStore
from fuseunion.linux.objects.real_object import RealObject


class LinkOwners(OwnershipStore):
    """The companion of an XattrStore in an image."""

    label = "the image"

    def find(self, where: RealObject, st: os.stat_result) -> Facts | None:
        return None

    def store(self, where: RealObject, st: os.stat_result, facts: Facts) -> None:
        if (st.st_uid, st.st_gid) == (facts.uid, facts.gid):
            return
        try:
            where.chown(facts.uid, facts.gid)
        except OSError as error:
            # An id that the namespace has no number for, or an image that is mounted in another way: given up, as by
            # fuse-overlayfs.
            if error.errno not in (errno.EPERM, errno.EINVAL, errno.EOVERFLOW):
                raise

    def forget(self, st: os.stat_result) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass
