"""Whether the one who mounts may change what a lower shows.

Nothing of the lower is in the way: it is the permissions that are shown. An ordinary user owns UPPER, which the root of
the merged tree shows, and nothing below: over a tree of root's, mkdir in a directory of it is EACCES, as it would be in
the tree itself. Only the top directory is looked at; it stands for the tree.
"""

from __future__ import annotations

import os
import stat

from fuseunion.core.ids.identity import overflow_id
from fuseunion.linux.namespaces import in_first_user_namespace
from fuseunion.mounting.options import Options, XattrPermissions


def objection(st: os.stat_result, options: Options) -> str | None:
    """Why not, and what helps, for a message; None where they may, and where options say whose everything is.

    Args:
        st: of the top directory of a lower.
    """
    says_who = (
        options.uid_map,
        options.gid_map,
        options.squash_uid is not None,
        options.squash_gid is not None,
        options.xattr_permissions is not XattrPermissions.OFF,
        options.stranger_uid is not None,
    )
    if any(says_who) or st.st_uid == os.geteuid():
        return None
    if os.geteuid() == 0:
        # The root of a user namespace may do anything with what has a number there (capabilities(7)).
        unknown = st.st_uid == overflow_id("uid") or st.st_gid == overflow_id("gid")
        if in_first_user_namespace() or not unknown:
            return None
    if st.st_mode & stat.S_IWOTH or (st.st_mode & stat.S_IWGRP and st.st_gid in (os.getegid(), *os.getgroups())):
        return None
    return (
        f"belongs to another user ({st.st_uid}), so you can change little but its top directory; "
        "with --mine everything shows as yours"
    )
