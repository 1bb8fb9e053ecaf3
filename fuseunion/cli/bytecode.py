"""`python -m fuseunion.cli.bytecode`: make the file of bytecode (fuseunion/bytecode/writing.py) without a mount."""

import sys

from fuseunion import bytecode
from fuseunion.bytecode.file import path
from fuseunion.bytecode.writing import write
from fuseunion.cli import arguments, main, mount  # noqa: F401  # of the mount command
from fuseunion.engines import choose  # noqa: F401
from fuseunion.engines.registry import load, order
from fuseunion.errors import one_line
from fuseunion.mounting.options import EngineChoice


def make() -> int:
    """Import what a mount imports, and make the file; returns the exit status."""
    scripts = bytecode.install().scripts
    load(order(EngineChoice.AUTO)[0]).preload()
    try:
        write(scripts.used)
    except OSError as error:
        sys.stderr.write(f"fuseunion: cannot make '{one_line(path())}': {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(make())
