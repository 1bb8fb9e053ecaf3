"""The stage of every test here."""

from __future__ import annotations

import os

import pytest

from tests.exec.stage import SINGLE, Stage
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.interpreter import Interpreter
from tests.support.user import User


@pytest.fixture
def stage(arena: Arena, reachable_interpreter: Interpreter) -> Stage:
    """As the actor."""
    return Stage(arena, arena.place.interpreter)


@pytest.fixture
def single(arena: Arena, reachable_interpreter: Interpreter) -> Stage:
    """As a user with one id, in a test of root's."""
    return _as(arena, reachable_interpreter, SINGLE, SINGLE)


@pytest.fixture(params=["root", "user", "single"])
def watched(request: pytest.FixtureRequest, arena: Arena, reachable_interpreter: Interpreter, user: User) -> Stage:
    """As root, as the ordinary user or as one with one id, in a test of root's, who sees all of their processes.

    They themselves may not look at those of exec.
    """
    if request.param == "root":
        return Stage(arena, reachable_interpreter)
    uid, gid = (user.uid, user.gid) if request.param == "user" else (SINGLE, SINGLE)
    return _as(arena, reachable_interpreter, uid, gid)


def _as(arena: Arena, interpreter: Interpreter, uid: int, gid: int) -> Stage:
    assert arena.actor.role is Role.ROOT
    os.chown(arena.root, uid, gid)
    return Stage(arena, interpreter, (uid, gid))
