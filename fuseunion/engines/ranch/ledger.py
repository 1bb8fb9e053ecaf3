"""Permissions that a command lends itself in a farm, and that are given back even after it was killed.

A directory that its owner closed to himself has to be gone through all the same, and what is in it can take long. So it
is written down first: a line with the mode, the one that is lent and the path. The file is there only as long as
something is lent.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fuseunion.core.realdir import RealDir
from fuseunion.engines.ranch import private
from fuseunion.engines.ranch.state import LENT

READ = 0o500
"""To list and search a directory."""
WRITE = 0o700
"""To make names in it as well."""


class Ledger:
    """What is lent in one farm.

    Args:
        state: the ranch's state directory.
        farm: the farm's root.
    """

    def __init__(self, state: Path, farm: RealDir) -> None:
        self._path = state / LENT
        self._farm = farm
        self._count = 0

    @contextmanager
    def lent(self, directory: RealDir, rights: int = READ) -> Iterator[None]:
        """Lend the user rights on a directory of his; other layers than the farm stay as they are."""
        fd = os.dup(directory.fd())
        try:
            mode = private.lacking(fd, rights) if directory.layer is self._farm.layer else None
            if mode is None:
                yield
                return
            self._note(mode, mode | rights, directory)
            self._count += 1
            os.chmod(private.proc_fd(fd), mode | rights)
            try:
                yield
            finally:
                os.chmod(private.proc_fd(fd), mode)
                self._count -= 1
                if not self._count:
                    self._path.unlink()
        finally:
            os.close(fd)

    @contextmanager
    def lent_from_above(self, directory: RealDir) -> Iterator[None]:
        """The same for a directory and all above it, where nobody is going through these."""
        above = [directory]
        while (parent := above[-1].parent) is not None:
            above.append(parent)
        with ExitStack() as stack:
            for real in reversed(above):
                stack.enter_context(self.lent(real))
            yield

    def _note(self, mode: int, lent: int, directory: RealDir) -> None:
        names: list[str] = []
        node = directory
        while node.parent is not None:
            names.append(os.fsdecode(node.name))
            node = node.parent
        with open(self._path, "a", encoding="ascii") as file:
            file.write(json.dumps([mode, lent, names[::-1]]) + "\n")
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
                mode, lent, names = json.loads(line)
            except ValueError:
                continue  # killed while it was written, and so before anything was lent
            try:
                self._give_back(mode, lent, [os.fsencode(name) for name in names])
            except PermissionError:
                continue  # what it lies in was closed again, and that comes after
        self._path.unlink()

    def _give_back(self, mode: int, lent: int, names: list[bytes]) -> None:
        directory = self._farm
        for name in names:
            st = directory.stat(name)
            if st is None or not stat.S_ISDIR(st.st_mode):
                return  # the user moved it
            directory = directory.child(name)
        fd = directory.fd()
        if stat.S_IMODE(os.fstat(fd).st_mode) == lent:
            os.chmod(private.proc_fd(fd), mode)
