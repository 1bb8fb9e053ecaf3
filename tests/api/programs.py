"""Programs that use the Python API, run as the actor of a test in a directory for temporary files of their own."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from typing import Any

from tests.support.arena import Arena

HEAD = """
import json, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from pathlib import Path
import fuseunion
root = Path(sys.argv[1])
lower, upper = root / "lower0", root / "upper"
def tell(value):
    print(json.dumps(value, default=str), flush=True)
"""


def start(arena: Arena, program: str) -> subprocess.Popen[str]:
    """Start a program; what it tells comes on its stdout, one JSON value per line."""
    temporary = arena.directory("tmp")
    return subprocess.Popen(
        [arena.place.interpreter.executable, "-c", HEAD + textwrap.dedent(program), str(arena.root)],
        env={**arena.place.environment(), "TMPDIR": str(temporary)},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def tells(arena: Arena, program: str) -> list[Any]:
    """Run a program to its end; returns what it told. Nothing temporary may be left."""
    process = start(arena, program)
    output, errors = process.communicate(timeout=50)
    assert process.returncode == 0, errors
    assert os.listdir(arena.root / "tmp") == []
    return [json.loads(line) for line in output.splitlines()]
