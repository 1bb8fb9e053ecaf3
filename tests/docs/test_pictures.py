"""The pictures in the docs are what `make pictures` draws today: the same but for figures, which no two runs share."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = Path(__file__).parents[2] / "scripts/pictures"
_TEXT = "{http://www.w3.org/2000/svg}text"


def lines(picture: Path) -> list[str]:
    """What is written in a picture."""
    drawing = ElementTree.parse(picture)
    rows: dict[str, list[tuple[float, str]]] = {}
    for text in drawing.iter(_TEXT):
        if text.get("clip-path") is not None:  # else it is the title
            rows.setdefault(text.get("y", ""), []).append((float(text.get("x", "0")), text.text or ""))
    return ["".join(part for _, part in sorted(rows[y])).replace("\xa0", " ") for y in sorted(rows, key=float)]


def labels(picture: Path) -> list[str]:
    """The words at the left of what is set in."""
    return [line.split()[0] for line in lines(picture) if line.startswith("    ")]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pictures")
    done = subprocess.run([sys.executable, SCRIPT, directory], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory


def test_diff(drawn: Path) -> None:
    assert lines(drawn / "diff.svg") == lines(DOCS / "diff.svg")


def test_status(drawn: Path) -> None:
    assert labels(drawn / "status.svg") == labels(DOCS / "status.svg")


def test_top(drawn: Path) -> None:
    """The headings and the keys; which operation is first is the figures' to say."""
    kept = [
        [line for line in lines(directory / "top.svg") if re.search(r"[A-Z]{4}  |BUSIEST|q quit", line)]
        for directory in (drawn, DOCS)
    ]
    assert kept[0] == kept[1] and len(kept[0]) == 4


def test_each_is_shown_in_the_docs() -> None:
    pages = "".join(path.read_text() for path in DOCS.glob("*.md"))
    assert all(f"]({name}.svg)" in pages for name in ("diff", "status", "top"))
