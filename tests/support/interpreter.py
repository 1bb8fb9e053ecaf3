"""An interpreter, the package and its dependencies, all where an ordinary user may reach them.

The tests run as root too, and then their interpreter may lie in a directory that only root may enter (~/.pyenv), or
the checkout may. What a user cannot reach is bind-mounted into the scratch area for the length of the session.
"""

from __future__ import annotations

import os
import stat
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tests.support import libc

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Interpreter:
    """How to run the product: the executable, and the PYTHONPATH that it needs."""

    executable: str
    python_path: str

    def command(self, *arguments: str) -> list[str]:
        """The argument vector of `python -m fuseunion ARGUMENTS`."""
        return [self.executable, "-m", "fuseunion", *arguments]


def _open_to_everybody(path: Path) -> bool:
    """Whether any user may enter all parents of a path."""
    real = path.resolve()
    return all(os.stat(parent).st_mode & stat.S_IXOTH for parent in real.parents)


def own() -> Interpreter:
    """The interpreter that runs the tests."""
    return Interpreter(sys.executable, str(PROJECT))


def reachable(scratch: Path) -> Interpreter:
    """An interpreter that any user may run; what it had to mount lies beneath `scratch` and ends with it.

    Only root can need this: an ordinary user who runs the tests reaches their interpreter already.
    """
    packages = Path(sysconfig.get_path("purelib"))

    def within_reach(name: str, source: Path) -> Path:
        if _open_to_everybody(source):
            return source
        target = scratch / name
        target.mkdir()
        libc.mount(str(source.resolve()), str(target), "none", libc.MS_BIND)
        return target

    project = within_reach("project", PROJECT)
    if _open_to_everybody(Path(sys.executable)):
        return Interpreter(sys.executable, str(project))
    prefix = within_reach("python", Path(sys.base_prefix))
    library = within_reach("packages", packages)
    executable = prefix / Path(sys.executable).resolve().relative_to(Path(sys.base_prefix).resolve())
    return Interpreter(str(executable), f"{project}:{library}")
