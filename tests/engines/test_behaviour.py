"""Every engine behaves as a plain directory does, but for the differences that are written down."""

from __future__ import annotations

import pytest

from tests.engines.behaviours import BEHAVIOURS, answer, description
from tests.engines.differences import DIFFERENCES
from tests.engines.shown import Engine, engines_of, shown
from tests.support.arena import Arena

ALL = pytest.mark.actors("root", "user", "userns", "denied")


@ALL
@pytest.mark.limit(180)
def test_every_behaviour(arena: Arena) -> None:
    """One mount for each engine, with a directory in it for each behaviour."""
    lower = arena.lower(description())
    with shown(arena, Engine.PLAIN, [lower], arena.upper, name="plain") as plain:
        expected = {name: answer(function, plain / name) for name, function in BEHAVIOURS.items()}
    wrong = []
    for engine in engines_of(arena.actor.role):
        upper = arena.root / f"upper-{engine.name}"
        with shown(arena, engine, [lower], upper) as merged:
            for name, function in BEHAVIOURS.items():
                got = answer(function, merged / name)
                wanted = DIFFERENCES.get((name, engine), expected[name])
                if got != wanted:
                    wrong.append(f"{engine.value}: {name}: {got!r}, expected {wanted!r}")
    assert not wrong, "\n".join(wrong)


def test_the_differences_name_behaviours() -> None:
    """No line of the table is about something that is not tested."""
    assert {name for name, _ in DIFFERENCES} <= set(BEHAVIOURS)
