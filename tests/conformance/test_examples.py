"""The examples of the how-to pages that need podman or buildah (the others: tests/docs)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.docs.examples import Example, Who
from tests.docs.performance import cases, label, perform
from tests.support.interpreter import Interpreter
from tests.support.user import User

pytestmark = [pytest.mark.conformance, pytest.mark.root]

CASES = cases([Who.PODMAN])


@pytest.mark.parametrize(("example", "who"), CASES, ids=[*map(label, CASES)])
def test_example(example: Example, who: Who, scratch: Path, user: User, reachable_interpreter: Interpreter) -> None:
    if shutil.which(example.name.partition("-")[0]) is None:
        pytest.skip("podman or buildah is missing: run scripts/setup-conformance")
    perform(example, who, scratch, user.name, reachable_interpreter)
