"""The program under test as one executable file, which is how container engines, mount(8) and fstab take it.

FUSEUNION_PROGRAM=/usr/bin/fuse-overlayfs runs the same tests against another mount program: a test that fails there
too may be wrong itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.interpreter import Interpreter

PROGRAM_VARIABLE = "FUSEUNION_PROGRAM"


def substitute() -> Path | None:
    """The other mount program that FUSEUNION_PROGRAM names, if any."""
    name = os.environ.get(PROGRAM_VARIABLE)
    return Path(name) if name else None


def make_launcher(path: Path, interpreter: Interpreter) -> Path:
    """Write an executable at `path` that runs this checkout's fuseunion, whatever the environment and directory.

    Python's -P keeps the caller's working directory, which is a container store or a stranger's directory, out of the
    import path.
    """
    command = f"PYTHONPATH={interpreter.python_path} exec {interpreter.executable} -P -m fuseunion"
    path.write_text(f'#!/bin/sh\n{f"exec {other}" if (other := substitute()) else command} "$@"\n')
    path.chmod(0o755)
    return path
