"""Commands run within the test, with what they print."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

from fuseunion.cli.main import run


class Said(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


def fuseunion(*arguments: str | Path) -> Said:
    """Run a command of the product."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(["fuseunion", *map(str, arguments)])
    return Said(code, out.getvalue(), err.getvalue())


def done(*arguments: str | Path) -> str:
    """Run a command that has to succeed; what it prints."""
    said = fuseunion(*arguments)
    assert said.code == 0, said.err
    return said.out
