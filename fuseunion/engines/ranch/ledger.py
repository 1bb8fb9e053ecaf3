"""Permissions that collecting lends itself in a farm, and gives back even after it was killed.

A directory that its owner closed to himself has to be gone through all the same, and what is in it can take long. So it
is written down first: a line with the mode and the path, and the file is there only as long as something is lent.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuseunion.core.realdir import RealDir
from fuseunion.engines.ranch import private
from fuseunion.engines.ranch.state import LENT

_RIGHTS = 0o500


class Ledger:
    """What is lent in one farm.

    Args:
        state: the ranch's state directory.
        farm: the farm's root.
    """

    def __init__(self, state: Path, farm: RealDir) -> None:
        self._path = state / LENT
        self._farm = farm
        self._lent = 0

    @contextmanager
    def lent(self, directory: RealDir) -> Iterator[None]:
        """Lend the user the permission to list and search a directory of his."""
        fd = os.dup(directory.fd())
        try:
            mode = private.lacking(fd, _RIGHTS) if directory.layer is self._farm.layer else None
            if mode is None:
                yield
                return
            self._note(mode, directory)
            self._lent += 1
            os.chmod(private.proc_fd(fd), mode | _RIGHTS)
            try:
                yield
            finally:
                os.chmod(private.proc_fd(fd), mode)
                self._lent -= 1
                if not self._lent:
                    self._path.unlink()
        finally:
            os.close(fd)

    def _note(self, mode: int, directory: RealDir) -> None:
        names: list[str] = []
        node = directory
        while node.parent is not None:
            names.append(os.fsdecode(node.name))
            node = node.parent
        with open(self._path, "a", encoding="ascii") as file:
            file.write(json.dumps([mode, names[::-1]]) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def settle(self) -> None:
        """Give back what a killed command had lent itself, where nobody changed it since."""
        try:
            lines = self._path.read_text(encoding="ascii").splitlines()
        except FileNotFoundError:
            return
        for line in reversed(lines):  # from the inside out
            try:
                mode, names = json.loads(line)
            except ValueError:
                continue  # killed while it was written, and so before anything was lent
            self._give_back(mode, [os.fsencode(name) for name in names])
        self._path.unlink()

    def _give_back(self, mode: int, names: list[bytes]) -> None:
        directory = self._farm
        for name in names:
            st = directory.stat(name)
            if st is None or not stat.S_ISDIR(st.st_mode):
                return  # the user moved it
            directory = directory.child(name)
        fd = directory.fd()
        if stat.S_IMODE(os.fstat(fd).st_mode) == mode | _RIGHTS:
            os.chmod(private.proc_fd(fd), mode)
