"""What lies in a farm and is neither the union's nor the user's: the ranch's own names, and what --inject put there."""

from __future__ import annotations

import os
import stat

from fuseunion.core.disk import trees
from fuseunion.core.disk.access import LayerAccess
from fuseunion.core.disk.realdir import RealDir
from fuseunion.engines.ranch.farm import private
from fuseunion.engines.ranch.record import marker


class Extras:
    """Knows what of a farm is never collected.

    Args:
        injected: path in the farm and text of each link that was put there at creation and belongs to no layer.
    """

    def __init__(self, farm: LayerAccess, injected: dict[bytes, bytes]) -> None:
        self._farm = farm
        self._injected = injected
        self._above = {path[:end] for path in injected for end in range(len(path)) if path[end : end + 1] == b"/"}

    def is_ours(self, source: RealDir, name: bytes) -> bool:
        """Whether a name is the ranch's own: an unfinished object, or the mark of MERGED."""
        if source.layer is not self._farm:
            return False
        return private.is_temporary(name) or (source.parent is None and name == marker.NAME)

    def is_injected(self, source: RealDir, name: bytes, way: bytes, st: os.stat_result) -> bool:
        """Whether an object is a link that was injected.

        Args:
            way: its path from MERGED.
            st: its lstat.
        """
        text = self._injected.get(way)
        return text is not None and stat.S_ISLNK(st.st_mode) and os.readlink(name, dir_fd=source.fd()) == text

    def holds_nothing_else(self, real: RealDir, way: bytes) -> bool:
        """Whether a directory was only made for the links that were injected into it, and holds nothing else.

        Args:
            way: its path from MERGED.
        """
        if way not in self._above:
            return False
        for entry in trees.walk(real, enters=lambda entry: way + b"/" + entry.path in self._above):
            path = way + b"/" + entry.path
            leads_on = entry.is_directory and path in self._above
            if not leads_on and not self.is_injected(entry.directory, entry.name, path, entry.st):
                return False
        return True
