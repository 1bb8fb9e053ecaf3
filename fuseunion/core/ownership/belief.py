"""Which stored ownership is believed, where believing it could make somebody root.

The owner of a file, and everybody who may write to it, can set its `user.*` attributes (fs/xattr.c xattr_permission).
In a mount of an ordinary user, or of the root of a user namespace, a forged owner gives nothing that its forger does
not have. In a mount of the machine's root it would make a program set-user-ID root, or an empty file a device. So there

* a layer is believed when its root directory belongs to root and nobody else may write to it;
* in it, an object is believed whole when the real object belongs to root and nobody else may write to it;
* of any other object is believed what its real owner could do with chmod(2): the real owner and group, permissions
  without set-id bits, no device;
* a database is believed when it and its directory belong to root and nobody else may write to them.

An option that asks for stored ownership (`xattr_permissions=`, `--fakeroot`) asks for the upper: then the objects of
root and of the owner of the upper's root directory are believed, no matter who else may write. In lowers that belong to
root it lifts the conditions on permissions, as container engines need it: root's storage with `force_mask` has real
owners, and masks that may let a group write; and set-id bits count for the real owner.

`security.*` needs CAP_SYS_ADMIN. What it says is believed in every layer, but for set-id bits: who owns the file, or
may write to it, decides what the program is.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from fuseunion.core.ownership.facts import DATABASE_FILE, DEVICES, Facts
from fuseunion.linux import namespaces

ROOT = 0
_SET_ID = stat.S_ISUID | stat.S_ISGID
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
"""With an ACL the bits of the group are its mask: the most that it grants to anybody but the owner (acl(5))."""


class Belief(NamedTuple):
    """What is believed of the objects of one layer.

    Attributes:
        owners: the real owners whose objects are believed whole.
        asked: an option asks for the layer; who else may write to it does not matter.
        privileged: the facts are in attributes that only root can write.
    """

    owners: frozenset[int]
    asked: bool = False
    privileged: bool = False

    def trusts(self, st: os.stat_result) -> bool:
        """Whether everything is believed that is stored of an object with this real stat result."""
        return st.st_uid in self.owners and (self.asked or is_closed(st))

    def limit(self, st: os.stat_result, facts: Facts) -> Facts | None:
        """What is believed of these facts; None where nothing is."""
        if self.trusts(st):
            return facts
        if self.privileged:
            return facts._replace(mode=facts.mode & ~_SET_ID)
        own = (facts.uid, facts.gid) == (st.st_uid, st.st_gid) and facts.kind not in DEVICES
        if self.asked:
            return facts if own else None
        return facts if own and not facts.mode & _SET_ID and is_closed(st) else None


def is_needed() -> bool:
    """Whether this process is the machine's root, for whom alone it matters what is believed."""
    return os.geteuid() == ROOT and namespaces.in_first_user_namespace()


def is_closed(st: os.stat_result) -> bool:
    """Whether nobody but its owner may write to an object. A symbolic link never changes, whatever its mode."""
    return stat.S_ISLNK(st.st_mode) or not st.st_mode & OTHERS_WRITE


def of_upper(root: os.stat_result, *, asked: bool, privileged: bool) -> Belief | None:
    """What is believed of an upper, None for nothing.

    Args:
        root: of its root directory.
        asked: the mount asks for stored ownership.
        privileged: as of Belief.
    """
    if asked:
        return Belief(frozenset((ROOT, root.st_uid)), True, privileged)
    return Belief(frozenset((ROOT,)), False, privileged) if privileged or _is_roots(root) else None


def of_lower(root: os.stat_result, *, asked: bool, privileged: bool) -> Belief | None:
    """What is believed of a lower, None for nothing. Arguments as of `of_upper`."""
    if asked and root.st_uid == ROOT:
        return Belief(frozenset((ROOT,)), True, privileged)
    return Belief(frozenset((ROOT,)), False, privileged) if privileged or _is_roots(root) else None


def is_roots_database(work_fd: int) -> bool:
    """Whether nobody but root can have written the database of a work area, or could write one.

    Raises:
        OSError: as lstat(2), but not ENOENT.
    """
    if not _is_roots(os.fstat(work_fd)):
        return False
    for suffix in (b"", b"-wal", b"-shm", b"-journal"):
        try:
            st = os.stat(DATABASE_FILE + suffix, dir_fd=work_fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if not (stat.S_ISREG(st.st_mode) and _is_roots(st)):
            return False
    return True


def _is_roots(st: os.stat_result) -> bool:
    return st.st_uid == ROOT and is_closed(st)
