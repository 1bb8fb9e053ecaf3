"""What an upper may hold that only the fuse engine can show, and what can be done about it before another takes over.

Stored owners (core/ownership/) have no meaning for overlayfs, nor for a tree of links: such layers are refused. The
hard-link index knows which names of a lower file belong to a copy that was made under another name; these names are
given to the copy in the upper, where everybody sees them.
"""

from __future__ import annotations

import os

from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.work import WorkDirectory
from fuseunion.core.ownership.store_choice import detect, has_database
from fuseunion.core.tree.directory import Directory
from fuseunion.core.union import Union
from fuseunion.mounting.prepared import Prepared


def stored_owners(prepared: Prepared) -> str | None:
    """The layer whose owners are not those of its files, if there is one."""
    for opened in (*([prepared.upper] if prepared.upper is not None else []), *prepared.lowers):
        if detect(opened.fd) is not None:
            return opened.label
    if prepared.work is not None and prepared.upper is not None and has_database(prepared.work.fd):
        return prepared.upper.label
    return None


def complete_links(prepared: Prepared) -> None:
    """Link every name of a copied-up file into the upper, if the index holds any.

    Raises:
        OSError: of the layers.
    """
    upper, work = prepared.upper, prepared.work
    if upper is None or work is None or "links" not in os.listdir(work.fd):
        return
    union = Union.plain(
        [_layer(opened.fd, opened.label, opened.covered) for opened in prepared.lowers],
        _layer(upper.fd, upper.label, upper.covered, writable=True),
        WorkDirectory(os.dup(work.fd), work.label),
    )
    try:
        pending = [union.root]
        while pending:
            directory = pending.pop()
            for name in union.list_names(directory):
                inode = union.lookup(directory, name)
                if isinstance(inode, Directory):
                    pending.append(inode)
                elif inode is not None:
                    union.complete_links(inode, directory, name)
                    union.release(inode)
    finally:
        union.close()


def _layer(fd: int, label: str, covered: tuple[bytes, ...], *, writable: bool = False) -> Layer:
    return Layer(os.dup(fd), writable=writable, label=label, covered=covered)
