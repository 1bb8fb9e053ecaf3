"""Removing a tree of links: all of it once it was collected, or only what a build made."""

from __future__ import annotations

import os

from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir
from fuseunion.engines.ranch.descend import Step, run
from fuseunion.engines.ranch.farm import private
from fuseunion.engines.ranch.record import marker


def empty(path: str) -> None:
    """Remove everything in a directory, not the directory itself; links are not followed.

    Raises:
        OSError: EXDEV where something is mounted in it.
    """
    layer = Layer(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), writable=True, label=path)
    try:
        run(_empty(layer.root))
    finally:
        layer.close()
    marker.remove(path)


def remove(directory: RealDir, name: bytes) -> None:
    """Remove one entry with all that is in it, if it is there."""
    if directory.stat(name) is not None:
        run(_remove(directory, name))


def _remove(directory: RealDir, name: bytes) -> Step:
    try:
        os.unlink(name, dir_fd=directory.fd())
    except (IsADirectoryError, PermissionError):
        yield _empty(directory.child(name))
        os.rmdir(name, dir_fd=directory.fd())


def _empty(directory: RealDir) -> Step:
    private.open_up(directory)
    for name in directory.names():
        # The mark goes last: without it nobody finds the rest.
        if directory.parent is None and name == marker.NAME:
            continue
        yield _remove(directory, name)
