"""Whether the user could change a lower through the links of a ranch without mounts.

Writing needs permission on the file; its mode and times can be changed by its owner whatever the permissions say
(chmod(1), touch(1) follow links). Nothing can be changed on a filesystem that is mounted read-only.
"""

from __future__ import annotations

import os

from fuseunion.core.disk import trees
from fuseunion.core.disk.access import LayerAccess
from fuseunion.core.disk.realdir import RealDir


class Guard:
    """Judges objects of the lowers."""

    def __init__(self) -> None:
        self._uid = os.geteuid()
        self._read_only: dict[LayerAccess, bool] = {}

    def changeable(self, real: RealDir, name: bytes, st: os.stat_result) -> bool:
        """Whether the user could change an object.

        Args:
            real, name: where it lies.
            st: its lstat.
        """
        read_only = self._read_only.get(real.layer)
        if read_only is None:
            read_only = bool(os.fstatvfs(real.layer.root_fd).f_flag & os.ST_RDONLY)
            self._read_only[real.layer] = read_only
        if read_only:
            return False
        if self._uid in (0, st.st_uid):
            return True
        return os.access(name, os.W_OK, dir_fd=real.fd(), effective_ids=True)

    def changeable_beneath(self, real: RealDir) -> bytes | None:
        """The path of an object in a directory, at any depth, that the user could change; None when there is none."""
        if self.changeable(real, b".", real.own_stat()):
            return b"."
        # Into a directory that may not be read nobody gets through a link either.
        for entry in trees.walk(real, pass_over_closed=True):
            if self.changeable(entry.directory, entry.name, entry.st):
                return entry.path
        return None
