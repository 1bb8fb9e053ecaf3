"""`fuseunion.run`: one command in a union, as `fuseunion exec` does it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from fuseunion.api.mount import AnyPath, Value, absolute, arguments
from fuseunion.errors import UserError
from fuseunion.mounting.options.grammar import escape

_OF_SUBPROCESS = frozenset({
    "capture_output", "check", "encoding", "errors", "input", "stderr", "stdin", "stdout", "text", "timeout",
})  # fmt: skip


def run(
    lower: AnyPath | Sequence[AnyPath],
    upper: AnyPath | None,
    argv: Sequence[str | bytes | os.PathLike[str]],
    **options: Value | Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a command in a union, with the union as its root (docs/options.md, exec), and wait for its end.

    Args:
        lower: the lower directory, or several, topmost first.
        upper: where changes are kept; None to drop them.
        argv: the command and its arguments; at least the command.
        options: those of subprocess.run for input and output, check and timeout; all others are options of
            `fuseunion exec`, as in `fuseunion.mount`: `bind="/data"`, `net="none"`, `env=["A=1"]`.

    Returns:
        As subprocess.run. The return code is that of `fuseunion exec` (docs/exit-codes.md): where the union cannot be
        made it is one of fuseunion, and the line that says why is on standard error.

    Raises:
        UserError: USAGE for no command, an empty path, or an option that makes no sense here.
        subprocess.CalledProcessError, subprocess.TimeoutExpired: as subprocess.run.
    """
    if isinstance(argv, str | bytes) or not argv:
        raise UserError("argv is a list that begins with the command")
    lowers = [lower] if isinstance(lower, str | os.PathLike) else list(lower)
    if not lowers:
        raise UserError("give at least one lower directory")
    of_subprocess: dict[str, Any] = {name: value for name, value in options.items() if name in _OF_SUBPROCESS}
    of_exec = {name: value for name, value in options.items() if name not in _OF_SUBPROCESS}
    command = [sys.executable, "-m", "fuseunion", "exec", *arguments(of_exec, "run")]
    command.append(":".join(escape(absolute(path)) for path in lowers))
    if upper is not None:
        command.append(absolute(upper))
    return subprocess.run([*command, "--", *argv], check=of_subprocess.pop("check", False), **of_subprocess)
