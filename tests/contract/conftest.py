"""What every test of the mount-program contract starts with."""

from __future__ import annotations

import pytest

from tests.support.arena import Arena
from tests.support.caller import Caller, make_caller
from tests.support.fake_store import FakeStore


@pytest.fixture
def caller(arena: Arena) -> Caller:
    """A caller of the program under test."""
    return make_caller(arena)


@pytest.fixture
def store(arena: Arena) -> FakeStore:
    """A container store without layers."""
    return FakeStore(arena)
