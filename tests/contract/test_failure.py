"""A mount that cannot be made: a non-zero exit, one line that says why, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import processes
from tests.support.arena import Arena
from tests.support.caller import Call, Caller
from tests.support.layers import File
from tests.support.mountinfo import mount_at

pytestmark = pytest.mark.actors("root", "userns", "user")


def assert_refused(call: Call, arena: Arena, *words: str | Path) -> None:
    assert call.exit_code != 0
    lines = call.stderr.splitlines()
    assert len(lines) == 1, call.stderr
    for word in words:
        assert str(word) in lines[0]
    assert processes.with_token(arena.place.token) == []


def test_a_missing_lower(caller: Caller, arena: Arena) -> None:
    merged = arena.directory("merged")
    call = caller.call("-o", f"lowerdir={arena.root}/missing", merged)
    assert_refused(call, arena, arena.root / "missing")
    assert mount_at(merged) is None


def test_a_missing_target(caller: Caller, arena: Arena) -> None:
    lower = arena.lower({"file": File()})
    call = caller.call("-o", f"lowerdir={lower}", arena.root / "missing")
    assert_refused(call, arena, arena.root / "missing")


def test_no_lower_at_all(caller: Caller, arena: Arena) -> None:
    assert_refused(caller.call("-o", "volatile", arena.directory("merged")), arena, "lower")


def test_an_upper_without_work(caller: Caller, arena: Arena) -> None:
    """Either it is refused in one line, or a work directory is found by itself; never a half mount."""
    lower, merged, upper = arena.lower({"file": File()}), arena.directory("merged"), arena.directory("upper")
    call = caller.call("-o", f"lowerdir={lower},upperdir={upper}", merged)
    if call.exit_code:
        assert_refused(call, arena)
        return
    (merged / "new").touch()
    caller.unmount(merged)
    assert (upper / "new").exists()


@pytest.mark.parametrize("mapping", ["uidmapping=0:1", "uidmapping=:0:1:2:3", "gidmapping=a:b:c"])
def test_a_mapping_that_is_no_triple(caller: Caller, arena: Arena, mapping: str) -> None:
    lower = arena.lower({"file": File()})
    call = caller.call("-o", f"lowerdir={lower},{mapping}", arena.directory("merged"))
    assert_refused(call, arena, mapping.partition("=")[0])
