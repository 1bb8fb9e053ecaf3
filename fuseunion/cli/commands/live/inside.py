"""Paths in a mount, as a command is given them."""

from __future__ import annotations

import os

from fuseunion.engines.status import Status
from fuseunion.errors import ExitCode, UserError


def path_in(status: Status, given: str) -> str:
    """A path from the root of a mount; "" for the root itself.

    A path that leads into the mount is that one, wherever it is said from; any other is one from the root of the mount.
    Symbolic links on the way are followed where the mount can be seen from here, but not the last name.

    Args:
        status: of the mount.
        given: the path as the user wrote it.

    Raises:
        UserError: LAYERS where a symbolic link or `..` leads out of the mount.
    """
    merged = status.merged
    said = os.path.abspath(given)
    if not _lies_in(said, merged):
        parent, name = os.path.split(said)
        said = os.path.join(os.path.realpath(parent), name)
    if not _lies_in(said, merged):
        said = os.path.normpath(f"{merged}/{given}")
    if status.namespace is None and said != merged:
        parent, name = os.path.split(said)
        said = os.path.join(os.path.realpath(parent), name)
    if not _lies_in(said, merged):
        raise UserError(f"'{given}' leads out of '{merged}'", ExitCode.LAYERS)
    return os.path.relpath(said, merged) if said != merged else ""


def _lies_in(path: str, merged: str) -> bool:
    return path == merged or path.startswith(f"{merged.rstrip('/')}/")
