"""What start-up is made of: what is refused is refused before the heavy imports, and a mount that is there answers.

How long it takes is measured by `make bench`, not here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.interpreter import PROJECT
from tests.support.layers import File
from tests.support.mountinfo import mount_at

HEAVY = {"pyfuse3", "trio", "rich", "sqlite3"}
"""Importing pyfuse3 and trio takes most of the time of a mount; a usual mount never needs the others."""


def _imported(arguments: list[str], cwd: Path) -> tuple[int, set[str]]:
    """The exit code of a command, and which of the heavy modules it imported."""
    command = [sys.executable, "-X", "importtime", "-m", "fuseunion", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    names = {line.rpartition("|")[2].strip() for line in lines}
    assert "fuseunion.cli.main" in names, done.stderr
    return done.returncode, names & HEAVY


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--no-such-option", "lower", "upper", "merged"], 2),
        (["lower", "", "merged"], 2),
        (["missing", "upper", "merged"], 3),
        (["--engine", "fuse", "lower", "lower/upper", "merged"], 3),
        (["umount", "merged"], 3),
        (["sync", "merged"], 3),
    ],
)
def test_a_refusal_imports_nothing_heavy(tmp_path: Path, arguments: list[str], code: int) -> None:
    """A container engine, or a person who mistypes, does not wait for pyfuse3."""
    for name in ("lower", "merged"):
        (tmp_path / name).mkdir()
    assert _imported(arguments, tmp_path) == (code, set())


@pytest.mark.actors("root", "user")
def test_the_mount_answers_when_the_command_returns(arena: Arena) -> None:
    """The first look needs no patience, however often it is mounted."""
    lower = arena.lower({"f": File(b"x")})
    merged = arena.directory("merged")
    for _ in range(5):
        done = arena.place.fuseunion(str(lower), str(arena.upper), str(merged))
        assert done.returncode == 0, done.stderr
        assert mount_at(merged) is not None
        assert (merged / "f").read_bytes() == b"x"
        assert arena.place.fuseunion("umount", str(merged)).returncode == 0
