"""Whether the user could change a lower through the links of a ranch without mounts.

Writing needs permission on the file; its mode and times can be changed by its owner whatever the permissions say
(chmod(1), touch(1) follow links). Nothing can be changed on a filesystem that is mounted read-only.
"""

from __future__ import annotations

import os
import stat

from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir


class Guard:
    """Judges objects of the lowers."""

    def __init__(self) -> None:
        self._uid = os.geteuid()
        self._read_only: dict[Layer, bool] = {}

    def changeable(self, real: RealDir, name: bytes, st: os.stat_result) -> bool:
        """Whether the user could change an object that is no directory."""
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
        pending = [(real, b"")]
        while pending:
            directory, path = pending.pop()
            st = os.stat(b".", dir_fd=directory.fd())
            if self.changeable(directory, b".", st):
                return path or b"."
            try:
                names = directory.names()
            except PermissionError:
                continue  # nobody gets in there through a link either
            for name in names:
                found = directory.stat(name)
                if found is None:
                    continue
                way = path + b"/" + name if path else name
                if stat.S_ISDIR(found.st_mode):
                    pending.append((directory.child(name), way))
                elif self.changeable(directory, name, found):
                    return way
        return None
