"""Permissions that a command lends itself in a farm, and that are given back even after it was killed.

A directory that its owner closed has to be gone through all the same, and that can take long. So what is lent is
written down first, in STATE/lent: a line with the mode, the one that is lent and the path. The file is there only as
long as something is lent.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fuseunion.core.disk.realdir import RealDir
from fuseunion.engines.ranch.record import lending
from fuseunion.engines.ranch.record.lending import READ_DIRECTORY, READ_FILE, lacking
from fuseunion.engines.ranch.record.record import LENT
from fuseunion.linux.objects.real_object import RealObject


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
    def lent(self, directory: RealDir, rights: int = READ_DIRECTORY) -> Iterator[None]:
        """Lend the user rights on a directory of the farm; one of another layer stays as it is.

        Args:
            rights: mode bits.

        Raises:
            OSError: what is lent cannot be written down; nothing is lent then.
        """
        ours = directory.layer is self._farm.layer
        mode = lacking(os.fstat(directory.fd()), rights) if ours else None
        if mode is None:
            yield
        else:
            with self._lent(directory.fd(), mode, rights, _way(directory)):
                yield

    @contextmanager
    def lent_from_above(self, directory: RealDir) -> Iterator[None]:
        """`lent` for a directory and all above it, where nobody is going through these."""
        above = [directory] if directory.layer is self._farm.layer else []
        while above and (parent := above[-1].parent) is not None:
            above.append(parent)
        with ExitStack() as stack:
            for real in reversed(above):
                stack.enter_context(self.lent(real))
            yield

    @contextmanager
    def legible(self, real: RealDir, name: bytes | None = None) -> Iterator[None]:
        """As lending.legible, for the farm and for UPPER."""
        if os.geteuid() == 0:
            yield
            return
        if real.layer is not self._farm.layer:
            with lending.legible(real, name):
                yield
            return
        with self.lent(real):
            mode = None if name is None else lacking(real.stat(name), READ_FILE)
            if name is None or mode is None:
                yield
            else:
                with real.held(name) as held, self._lent(held.fd, mode, READ_FILE, [*_way(real), name]):
                    yield

    @contextmanager
    def _lent(self, fd: int, mode: int, rights: int, names: list[bytes]) -> Iterator[None]:
        # Exactly what is written down, so that `settle` knows it again.
        held = RealObject(os.dup(fd))
        try:
            self._note(mode, mode | rights, names)
            self._count += 1
            try:
                held.chmod(mode | rights)
                try:
                    yield
                finally:
                    held.chmod(mode)
            finally:
                self._count -= 1
                if not self._count:
                    self._path.unlink()
        finally:
            os.close(held.fd)

    def _note(self, mode: int, lent: int, names: list[bytes]) -> None:
        with open(self._path, "a", encoding="ascii", opener=_private) as file:
            file.write(json.dumps([mode, lent, [os.fsdecode(name) for name in names]]) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def settle(self) -> None:
        """Give back what a killed command had lent itself, where nobody changed it since.

        Raises:
            OSError: the file cannot be read or removed.
        """
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
            except OSError:
                continue  # the user moved it, or what it lies in was closed again, and that comes after
        self._path.unlink()

    def _give_back(self, mode: int, lent: int, names: list[bytes]) -> None:
        *above, last = names or [b"."]
        directory = self._farm
        for name in above:
            directory = directory.child(name)
        st = directory.stat(last)
        if st is not None and stat.S_IMODE(st.st_mode) == lent and not stat.S_ISLNK(st.st_mode):
            directory.object(last).chmod(mode)


def _private(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW, 0o600)


def _way(directory: RealDir) -> list[bytes]:
    names: list[bytes] = []
    node = directory
    while node.parent is not None:
        names.append(node.name)
        node = node.parent
    return names[::-1]
