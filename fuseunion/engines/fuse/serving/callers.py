"""Whom a request came from, and what follows from that."""

from __future__ import annotations

import os
from typing import Protocol

import pyfuse3

from fuseunion.core.ids.identity import DiskGid, ShownGid, ShownUid
from fuseunion.core.ops.attributes import setgid_is_at_risk
from fuseunion.core.ops.create import Owner
from fuseunion.core.tree.inode import Inode
from fuseunion.core.union import Union
from fuseunion.linux.namespaces import in_first_user_namespace


class Caller(Protocol):
    """Who made a request: ids as they are shown, pid (0 in another pid namespace), umask."""

    @property
    def uid(self) -> int:
        """fsuid."""

    @property
    def gid(self) -> int:
        """fsgid."""

    @property
    def pid(self) -> int:
        """Of the thread."""

    @property
    def umask(self) -> int:
        """Where the kernel has not applied it."""


class Callers:
    """The callers of one mount.

    Args:
        own_root: every caller that gets in is root of the tree.
    """

    __slots__ = ("_first_namespace", "_identity", "_own_root", "_umask_pending", "_union")

    def __init__(self, union: Union, *, own_root: bool) -> None:
        self._union = union
        self._own_root = own_root
        self._identity = union.settings.identity
        self._first_namespace = in_first_user_namespace()
        self._umask_pending = union.settings.umask_pending

    def owner(self, caller: Caller) -> Owner:
        """Whom a new object belongs to, in ids on disk.

        Raises:
            OSError: EINVAL for a caller that the id map does not cover.
        """
        umask = caller.umask if self._umask_pending else 0
        if self._identity.trivial:
            return Owner(caller.uid, caller.gid, umask)
        identity = self._identity
        uid, gid = identity.uids.disk_or_none(caller.uid), identity.gids.disk_or_none(caller.gid)
        if uid is None and caller.uid == os.geteuid():
            # The user who mounted it may make things though the map leaves that user out: podman does, as root of its
            # own user namespace, before a container starts. They become the user's own, as without a map.
            return Owner(caller.uid, caller.gid if gid is None else gid, umask)
        return Owner(identity.disk_uid(ShownUid(caller.uid)), identity.disk_gid(ShownGid(caller.gid)), umask)

    def keeps_set_id(self, caller: Caller) -> bool:
        """True when a file keeps its set-ID bits though the caller changes its data (fs/attr.c
        setattr_should_drop_suidgid: CAP_FSETID in the first user namespace)."""
        return caller.uid == 0 and self._first_namespace

    def endangers_setgid(self, inode: Inode, mode: int, caller: Caller) -> bool:
        """True when the caller takes the set-group-ID bit from an object with this mode by changing its data, whatever
        privileges the caller has otherwise (attributes.setgid_is_at_risk)."""
        return setgid_is_at_risk(mode) and self.is_outsider(inode, caller)

    def is_outsider(self, inode: Inode, caller: Caller) -> bool:
        """True when the caller is neither root nor in the group of an object, as far as that can be known."""
        if caller.uid == 0 or self._own_root:
            return False
        st, _ = self._union.stat(inode)
        shown_gid = self._identity.shown_gid(DiskGid(st.st_gid))
        if shown_gid == caller.gid:
            return False
        try:
            return shown_gid not in pyfuse3.get_sup_groups(caller.pid)
        except OSError:
            return True  # it has ended, or lives in another pid namespace: then its number here is 0
