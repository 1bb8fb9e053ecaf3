"""Every marked example of the documentation does what the document says, and leaves nothing mounted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.examples import Example, Who, documents, examples
from tests.docs.performance import ORDINARY, cases, label, perform
from tests.docs.scenes import SCENES
from tests.support.interpreter import PROJECT, Interpreter
from tests.support.user import User

# The stages are namespaces that root prepares.
pytestmark = pytest.mark.root

EXAMPLES = [example for document in documents() for example in examples(document)]
HOW_TOS = sorted(path.name for path in (PROJECT / "docs").glob("howto-*.md"))
CASES = cases(ORDINARY)


@pytest.mark.parametrize(("example", "who"), CASES, ids=[*map(label, CASES)])
def test_example(example: Example, who: Who, scratch: Path, user: User, reachable_interpreter: Interpreter) -> None:
    perform(example, who, scratch, user.name, reachable_interpreter)


def test_names_are_used_once() -> None:
    names = [example.name for example in EXAMPLES]
    assert len(names) == len(set(names))


def test_every_scene_belongs_to_an_example() -> None:
    assert set(SCENES) <= {example.name for example in EXAMPLES}


@pytest.mark.parametrize("document", HOW_TOS)
def test_every_how_to_has_an_example(document: str) -> None:
    assert document in {example.document for example in EXAMPLES}


def test_readme_links_every_document() -> None:
    readme = (PROJECT / "README.md").read_text()
    missing = [path.name for path in documents()[1:] if f"(docs/{path.name})" not in readme]
    assert not missing, f"README.md does not link {missing}"
