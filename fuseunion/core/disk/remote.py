"""Layers on filesystems that may not answer: a server's, or another process's (FUSE).

What is looked up there is looked up in the loop, as everywhere, and a server that has gone would keep the loop for as
long as it is gone. So whoever serves a mount asks for the same first, from a thread and by path (`Asked.look`): then it
is the request that waits, and what comes back is in the kernel's memory when the loop asks. A path is enough for that,
since nothing is believed of what is found.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from fuseunion.core.disk.realdir import RealDir
from fuseunion.linux import f_types, mountinfo, syscalls
from fuseunion.linux.objects.real_object import RealObject

_FUSE = (f_types.FUSE, f_types.UNKNOWN)

_SERVERS = frozenset({
    f_types.NFS, f_types.SMB, f_types.SMB2, f_types.CIFS, f_types.AFS, f_types.KAFS, f_types.V9FS, f_types.CEPH,
    f_types.CODA, f_types.LUSTRE, f_types.GPFS, f_types.BEEGFS, f_types.PANFS, f_types.ORANGEFS,
})  # fmt: skip

_OF_THIS_MACHINE = frozenset({
    "fuse.fuseunion", "fuse.fuse-overlayfs", "fuse.unionfs", "fuse.unionfs-fuse", "fuse.squashfuse",
    "fuse.squashfuse_ll", "fuse.erofsfuse", "fuse.fuse2fs",
})  # fmt: skip
"""FUSE filesystems whose programs read other files of this machine, and nothing else."""

_HOLD_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_BENEATH = (
    syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_SYMLINKS
)


def is_remote(fd: int) -> bool:
    """Whether a descriptor is of a filesystem that may not answer (statfs(2), f_type; proc_pid_mountinfo(5)).

    Raises:
        OSError: as fstatfs(2).
    """
    kind = syscalls.filesystem_type(fd)
    if kind in _FUSE:
        return mountinfo.filesystem_type(os.fstat(fd).st_dev) not in _OF_THIS_MACHINE
    return kind in _SERVERS


class Asked(NamedTuple):
    """Something of a remote layer that a request is about.

    Attributes:
        root_fd: of the layer, borrowed.
        directory: the path from there to a directory; b"." for the root.
        name: in the directory; empty for the directory itself.
        noatime: what is read there keeps its time of access (LayerAccess.noatime).
    """

    root_fd: int
    directory: bytes
    name: bytes
    noatime: bool

    @classmethod
    def of(cls, real: RealDir, name: bytes) -> Asked | None:
        """What is called `name` in a directory, or the directory; None where nobody is asked for it: its layer is not
        remote, or it is where the union itself is mounted."""
        layer = real.layer
        if not layer.remote or real.is_covered(name):
            return None
        return cls(layer.root_fd, b"/".join(real.way()[1]) or b".", name, layer.noatime)

    def look(self, *, opens: bool, lists: bool) -> None:
        """Ask the filesystem for it; returns when that has answered, whatever it says. Made in a thread, with a
        descriptor of the root that stays open.

        Args:
            opens: a regular file is opened, too.
            lists: a directory is listed, too, with the attributes of all that is in it.
        """
        with suppress(OSError), self._directory_fd() as fd:  # whoever deals with the request meets the same
            if self.name:
                _look(RealObject(fd, self.name), opens)
            else:
                os.fstatvfs(fd)  # nobody answers that from memory
                if lists:
                    _list(fd)

    def open(self) -> int | None:
        """Open a regular file for reading, whichever it is now; made in the same way.

        Returns:
            A descriptor, owned by the caller; None where that does not work.
        """
        with suppress(OSError), self._directory_fd() as fd:
            flags = os.O_RDONLY | (os.O_NOATIME if self.noatime else 0)
            return RealObject(fd, self.name).open_regular(flags)[0]
        return None

    @contextmanager
    def _directory_fd(self) -> Iterator[int]:
        fd = syscalls.openat2(self.root_fd, self.directory, _HOLD_DIRECTORY, _BENEATH)
        try:
            yield fd
        finally:
            os.close(fd)


def _look(held: RealObject, opens: bool) -> None:
    mode = held.stat().st_mode
    if stat.S_ISLNK(mode):
        held.readlink()
    elif opens and stat.S_ISREG(mode):
        os.close(held.open_regular(os.O_RDONLY)[0])


def _list(fd: int) -> None:
    listed = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        with os.scandir(listed) as entries:
            for entry in entries:
                with suppress(OSError):
                    entry.stat(follow_symlinks=False)
    finally:
        os.close(listed)
