"""Dozens of mounts at once: each its own process, all alive together, all gone at the end."""

from __future__ import annotations

import pytest

from tests.support import processes
from tests.support.arena import Arena
from tests.support.caller import Caller
from tests.support.layers import File
from tests.support.waiting import wait_until

pytestmark = pytest.mark.actors("userns")

MOUNTS = 24


def test_two_dozen_at_once(caller: Caller, arena: Arena) -> None:
    lower = arena.lower({"file": File(b"x")})
    targets = [arena.directory(f"merged{number}") for number in range(MOUNTS)]
    for number, target in enumerate(targets):
        upper, work = arena.directory(f"upper{number}"), arena.directory(f"work{number}")
        call = caller.call("-o", f"lowerdir={lower},upperdir={upper},workdir={work},volatile", target)
        assert (call.exit_code, call.stderr) == (0, "")
    for number, target in enumerate(targets):
        (target / "file").write_text(str(number))
    assert len(processes.with_token(arena.place.token)) == MOUNTS
    for number, target in enumerate(targets):
        assert (target / "file").read_text() == str(number)
        caller.unmount(target)
    wait_until(lambda: not processes.with_token(arena.place.token), "all daemons to end")
