"""Directories that are renamed without being copied up (`redirect_dir=on`).

A directory of a lower, or a merged one, gets the mark `overlay.redirect`, which says where the lowers have it, and is
then renamed like any other: what is in it stays where it is (fs/overlayfs/dir.c ovl_set_redirect). The value is

    NAME      the name beside which it lies in the lowers of its parent: it stays in that directory
    /PATH     the path from the roots of the lowers: it goes elsewhere, or came from elsewhere

The mark is set before the rename, and leads to where the directory is found without it, so a crash, or a rename that
fails, leaves the tree as it was. Once it has a path the mark stays as it is, wherever the directory goes; a name stays
as long as the directory does not leave its parent.

Not every reader follows one. Overlayfs does without `userxattr` only (redirect_dir=follow or on), and refuses the
directory else (EPERM); fuse-overlayfs shows the directory without what the lowers have.
"""

from __future__ import annotations

import errno

from fuseunion.core.format import xattr_names
from fuseunion.core.marks.marks import marks_of
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.state import State
from fuseunion.linux.objects.permission import as_owner_of
from fuseunion.linux.os_error import os_error

_LONGEST = 256
"""Bytes of a path in a mark (fs/overlayfs/super.c ovl_redirect_max). What lies deeper is copied up to be renamed."""


def serves(state: State, directory: Directory) -> bool:
    """Whether a directory that lowers take part in can be renamed by a redirect, wherever it goes.

    Precondition: it is in the upper, and so are the directories above it.

    Raises:
        OSError: of the upper.
    """
    if not state.settings.redirect_dir or state.writable().work.capabilities.xattr_prefix is None:
        return False
    return len(_path(directory)) <= _LONGEST


def mark_of(directory: Directory) -> bytes | None:
    """The redirect on a directory of the upper, or None.

    Raises:
        OSError: ENOENT when it vanished behind our back; of the upper.
    """
    real = directory.upper
    if real is None or real.parent is None:
        return None
    st = real.parent.stat(real.name)
    if st is None:
        raise os_error(errno.ENOENT, real.name)
    return marks_of(real.parent, real.name, st).get(xattr_names.REDIRECT)


def write(state: State, directory: Directory, *, leaves_parent: bool) -> None:
    """Let a directory that lowers take part in show them under its next name too.

    Precondition: it and its parents are in the upper.

    Args:
        leaves_parent: that name is in another directory.

    Raises:
        OSError: EXDEV where no redirect serves, ENOSPC, EDQUOT; nothing that is seen has changed then.
    """
    mark = mark_of(directory)
    if mark is not None and (mark.startswith(b"/") or not leaves_parent):
        return
    value = _path(directory) if leaves_parent else directory.name
    prefix = state.writable().work.capabilities.xattr_prefix
    if not state.settings.redirect_dir or prefix is None or len(value) > _LONGEST:
        raise os_error(errno.EXDEV, directory.name)
    with directory.grasp() as held:
        as_owner_of(held, lambda: held.setxattr(prefix + xattr_names.REDIRECT, value))


def _path(directory: Directory) -> bytes:
    """Where the lowers have a directory, from their roots: names and marks up to the first mark that is a path
    (fs/overlayfs/dir.c ovl_get_redirect)."""
    path = b""
    node = directory
    while node.parent is not None:
        mark = mark_of(node)
        if mark is not None and mark.startswith(b"/"):
            return mark + path
        path = b"/" + (mark or node.name) + path
        node = node.parent
    return path
