"""Formatting, lint and types are part of the tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("tool", ["ruff format --check --no-cache .", "ruff check --no-cache .", "mypy"])
def test_static(tool: str) -> None:
    command = [sys.executable, "-m", *tool.split()]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
