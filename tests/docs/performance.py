"""Running one example on a stage, between what its scene prepares and what it checks."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.docs.examples import Example, Who, documents, examples
from tests.docs.scenes import SCENES, Scene
from tests.docs.stage import open_stage
from tests.support.interpreter import Interpreter
from tests.support.namespace import CLEAN_ENVIRONMENT

Case = tuple[Example, Who]

ORDINARY = (Who.ROOT, Who.USER)


def cases(players: Collection[Who]) -> list[Case]:
    """The examples of all documents, each with those of the players who run it."""
    return [
        (example, who)
        for document in documents()
        for example in examples(document)
        for who in example.who
        if who in players
    ]


def label(case: Case) -> str:
    """The name of a case for pytest."""
    example, who = case
    return f"{example.document}-{example.name}-{who.value}"


def perform(example: Example, who: Who, scratch: Path, user: str, interpreter: Interpreter) -> None:
    """Run an example; fail where it does not do what the document shows, or leaves something mounted."""
    scene = SCENES.get(example.name, Scene())
    if scene.needs and shutil.which(scene.needs, path=CLEAN_ENVIRONMENT["PATH"]) is None:
        pytest.skip(f"{scene.needs} is not installed")
    place = scratch / "docs-example"
    try:
        with open_stage(who, user, place, interpreter) as stage:
            stage.prepare(scene)
            faults = example.faults(stage.play(example.script(scene.between)))
            stage.play(scene.after)
        assert not faults, "\n".join(faults)
    finally:
        shutil.rmtree(place)
