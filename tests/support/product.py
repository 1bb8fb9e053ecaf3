"""The program under test as one executable file, which is how container engines, mount(8) and fstab take it.

FUSEUNION_PROGRAM=/usr/bin/fuse-overlayfs runs the same tests against another mount program: a test that fails there
too may be wrong itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from fuseunion.engines.fuse.wire.native.device import device
from tests.support.interpreter import Interpreter

PROGRAM_VARIABLE = "FUSEUNION_PROGRAM"

WITH_EXTENSION = device is not None
"""Whether mounts of this run read their requests directly; not so with FUSEUNION_WIRE=0."""


def substitute() -> Path | None:
    """The other mount program that FUSEUNION_PROGRAM names, if any."""
    name = os.environ.get(PROGRAM_VARIABLE)
    return Path(name) if name else None


CONSOLE_SCRIPT = """\
#!{executable} -P
import sys
sys.path[:0] = {path!r}
from fuseunion.__main__ import main
sys.exit(main())
"""


def make_launcher(path: Path, interpreter: Interpreter) -> Path:
    """Write an executable at `path` that runs this checkout's fuseunion, whatever the environment and directory.

    It is what pip installs as the console script, so that the name under which it is called arrives. Python's -P keeps
    the directory of the script and the caller's working directory, often a stranger's, out of the import path.
    """
    if (other := substitute()) is not None:
        path.write_text(f'#!/bin/sh\nexec {other} "$@"\n')
    else:
        places = interpreter.python_path.split(":")
        path.write_text(CONSOLE_SCRIPT.format(executable=interpreter.executable, path=places))
    path.chmod(0o755)
    return path
