"""A mount and a plain copy of what it shows: POSIX decides what is right.

The same steps are done to both, and whatever they answer, and the trees that they leave, must be equal. Steps are
functions of a root directory.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.support import tree
from tests.support.arena import Arena
from tests.support.mounts import FuseunionMount

Result = TypeVar("Result")

COMPARED = (*tree.SEEN, "nlink")


class Twin:
    """A mount beside a plain copy of it."""

    def __init__(self, arena: Arena, mount: FuseunionMount) -> None:
        self.mount = mount
        self.plain = arena.directory("plain")
        subprocess.run(["cp", "-a", f"{mount.merged}/.", str(self.plain)], check=True)
        self._since = time.time_ns() - 1_000_000_000

    def both(self, step: Callable[[Path], Result]) -> Result | None:
        """Do a step to the plain copy and to the mount; they must answer the same. Returns the answer."""
        expected = _answer(step, self.plain)
        got = _answer(step, self.mount.merged)
        assert got == expected, f"{step.__name__}: expected {expected}, got {got}"
        self.check(step.__name__)
        return got[1]

    def check(self, when: str) -> None:
        """The mount shows what the plain copy holds."""
        found = tree.differences(
            tree.snapshot(self.plain), tree.snapshot(self.mount.merged), COMPARED, since=self._since
        )
        assert not found, f"after {when}:\n  " + "\n  ".join(found)

    def remount(self) -> None:
        """Unmount, mount again, and compare."""
        self.mount.stop()
        self.mount.start()
        self.check("a remount")


def _answer(step: Callable[[Path], Result], root: Path) -> tuple[str, Result | None]:
    try:
        result = step(root)
    except OSError as error:
        return os.strerror(error.errno or 0), None
    # Path.rename and its like answer a path, which is another one on each side.
    return "ok", None if isinstance(result, Path) else result
