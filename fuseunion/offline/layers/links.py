"""Names of a lower's hard-linked file that lead to its copy through the link index alone.

Who reads an upper without its work directory sees the lower's content under them, until somebody has looked each of
them up in a mount (core/ops/copy_up/link_names.py).
"""

from __future__ import annotations

from collections.abc import Callable

from fuseunion.core.tree.file import File
from fuseunion.core.union import Union
from fuseunion.offline.layers import reader


def complete_links(union: Union, done: Callable[[int], None]) -> None:
    """Let every name of a hard-linked file that a mount shows changed be in the upper, as looking it up there does."""
    if not union.keeps_links:
        return
    for number, entry in enumerate(reader.merged(union)):
        if isinstance(entry.inode, File) and entry.directory is not None:
            union.complete_links(entry.inode, entry.directory, entry.name)
        done(number + 1)
