"""What is answered without Python is compared with what Python says, in all of these tests (docs/architecture.md)."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference is an error in the log of the daemon, and so fails the test."""
    if os.environ.get("FUSEUNION_WIRE") != "0":
        monkeypatch.setenv("FUSEUNION_WIRE", "compare")
