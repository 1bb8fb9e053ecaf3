"""The names of a merged directory.

A listing is a snapshot: the names of all layers, each once, taken when the listing begins (and again after a rewind).
An entry's offset is its place in the snapshot plus one, so it stays true while names come and go. Whether a name
is visible, and what it is, is decided by `lookup` when the entry is sent: one set of rules, in one place.
"""

from __future__ import annotations

from fuseunion.core.disk.permission import opened
from fuseunion.core.disk.wh_files import is_reserved
from fuseunion.core.format.xattr_names import MalformedError
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.lookup import resolve
from fuseunion.core.tree.state import State


def candidates(directory: Directory) -> list[bytes]:
    """Every name that may be visible in the directory, each once; what a whiteout hides may be among them.

    Raises:
        OSError: of the layers.
    """
    if directory.removed:
        return []
    layers = directory.layers()
    if len(layers) == 1:
        return [name for name in layers[0].names() if not is_reserved(name)]
    # Lowest layer first, as overlayfs lists (fs/overlayfs/readdir.c ovl_dir_read_merged).
    merged: dict[bytes, None] = {}
    for real in reversed(layers):
        merged.update(dict.fromkeys(real.names()))
    return [name for name in merged if not is_reserved(name)]


def is_empty(state: State, directory: Directory) -> bool:
    """True when nothing is visible in the directory."""
    layers = directory.layers()
    with opened(directory.upper):
        for name in candidates(directory):
            try:
                if name in directory.children or resolve(state, layers, name) is not None:
                    return False
            except MalformedError:
                return False  # listed, and so in the way, whatever it is
    return True
