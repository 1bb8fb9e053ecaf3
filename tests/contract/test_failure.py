"""A mount that cannot be made: a non-zero exit, one line that says why, and nothing left behind."""

from __future__ import annotations

import os
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
    """The default work directory is used, as on the plain command line, and goes with the mount."""
    lower, merged, upper = arena.lower({"file": File()}), arena.directory("merged"), arena.directory("upper")
    before = sorted(os.listdir(arena.root))
    with caller.mounted(f"lowerdir={lower},upperdir={upper}", merged):
        (merged / "file").write_bytes(b"changed")
        assert sorted(os.listdir(arena.root)) == sorted([*before, ".upper.fuseunion-work"])
    assert (upper / "file").read_bytes() == b"changed"
    assert sorted(os.listdir(arena.root)) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("uperdir={upper},workdir={work}", "unknown option 'uperdir'; did you mean upperdir= ?"),
        ("upperdir={upper},wrkdir={work}", "unknown option 'wrkdir'; did you mean workdir= ?"),
        ("upperdir,workdir={work}", "upperdir needs a value"),
        ("upperdir=,workdir={work}", "upperdir= is empty"),
        ("workdir={work}", "is given without an UPPER"),
        ("remount,ro", "remount: a mount cannot be changed"),
    ],
)
def test_what_would_be_another_mount(caller: Caller, arena: Arena, words: str, says: str) -> None:
    """A mount without its upper, which looks like success until somebody writes to it, or one over another."""
    lower, merged = arena.lower({"file": File()}), arena.directory("merged")
    text = words.format(upper=arena.directory("upper"), work=arena.directory("work"))
    assert_refused(caller.call("-o", f"lowerdir={lower},{text}", merged), arena, says)
    assert mount_at(merged) is None
    assert os.listdir(arena.root / "work") == []


@pytest.mark.parametrize("mapping", ["uidmapping=0:1", "uidmapping=:0:1:2:3", "gidmapping=a:b:c"])
def test_a_mapping_that_is_no_triple(caller: Caller, arena: Arena, mapping: str) -> None:
    lower = arena.lower({"file": File()})
    call = caller.call("-o", f"lowerdir={lower},{mapping}", arena.directory("merged"))
    assert_refused(call, arena, mapping.partition("=")[0])
