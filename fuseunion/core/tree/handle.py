"""Open files and directories.

A file handle owns one real descriptor. Copy-up changes what the descriptor refers to (dup2), so that a handle that was
opened before it reads what is written after it; the number stays, and a read in a worker thread sees the one or the
other whole.
"""

from __future__ import annotations

import os

from fuseunion.core.tree.directory import Directory, Names
from fuseunion.core.tree.file import File


class FileHandle:
    """An open file.

    Attributes:
        writable: opened for writing; before the copy-up the descriptor reads the lower.
        outsider: writes through it take the set-group-ID bit from the file (attributes.setgid_is_at_risk), because who
            opened it is not in the file's group.
    """

    __slots__ = ("fd", "file", "outsider", "writable")

    def __init__(self, file: File, fd: int, *, writable: bool) -> None:
        self.file = file
        self.fd = fd
        self.writable = writable
        self.outsider = False
        file.opened(self)

    def switch(self, fd: int) -> None:
        """Refer to what `fd` refers to from now on."""
        os.dup2(fd, self.fd, inheritable=False)

    def close(self) -> None:
        self.file.close_descriptor(self.fd)


class DirectoryHandle:
    """An open directory: the names as they were when the listing began, in a stable order."""

    __slots__ = ("directory", "names")

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.names: Names | None = None
        directory.keep(self)


Handle = FileHandle | DirectoryHandle
