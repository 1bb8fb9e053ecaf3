"""The examples of a page in docs/: its fenced blocks, in order, by language."""

from __future__ import annotations

import re

from tests.support.interpreter import PROJECT

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of docs/PAGE in that language; there is at least one."""
    text = (PROJECT / "docs" / page).read_text()
    found = [body for name, body in FENCE.findall(text) if name == language]
    assert found, f"{page} has no example in {language}"
    return found
