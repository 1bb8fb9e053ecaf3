"""What docs/ and the texts of the tests cite is there: files, sections, floors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.examples import documents
from tests.support.interpreter import PROJECT
from tests.unit.test_imports import FLOORS

ARCHITECTURE = PROJECT / "docs/architecture.md"

TESTS = sorted(path for path in (PROJECT / "tests").rglob("*.py") if path.name != "test_architecture.py")
SOURCES = sorted((PROJECT / "fuseunion").rglob("*.py"))
DOCUMENTS = [*documents(), PROJECT / "SECURITY.md"]
TEXTS = [*DOCUMENTS, *SOURCES, PROJECT / "docs/man/fuseunion.1", *TESTS]

CITED = re.compile(r"(?<![\w/.{}-])((?:fuseunion|tests|bench|scripts|docs)/[\w/-]+\.(?:py|md|1))\b")
"""The path of a file of this project, from its root."""

LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)")

NOT_IN_A_CLONE = re.compile(r"\b(?:design|reference)\.md\b|\bshared/style\.md")


def _name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


@pytest.mark.parametrize("path", TEXTS, ids=_name)
def test_cited_files_are_there(path: Path) -> None:
    text = path.read_text()
    cited = {*CITED.findall(text)}
    assert not [name for name in sorted(cited) if not (PROJECT / name).is_file()]
    assert not NOT_IN_A_CLONE.findall(text)


def _anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE):
        kept = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(kept.replace(" ", "-"))
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in LINK.findall(path.read_text()):
        document = (path.parent / target).resolve() if target else path
        assert document.exists(), target
        assert not anchor or anchor in _anchors(document), f"{target}#{anchor}"


def test_every_promise_names_its_tests() -> None:
    promises = re.findall(
        r"^\| (?!promise)([^|-][^|]*) \|(.*)\|$", (PROJECT / "docs/guarantees.md").read_text(), re.MULTILINE
    )
    assert len(promises) > 30
    assert not [promise for promise, tests in promises if not CITED.search(tests)]


def test_the_floors_are_those_that_are_enforced() -> None:
    section = ARCHITECTURE.read_text().partition("\n## The floors\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\d+\. `([\w.]+)`", section, re.MULTILINE) == FLOORS
