"""After a kill, the names that the link index counts as gone are looked at: rightly, and each directory once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.inprocess import in_process
from tests.support.layers import File, Link, Name, Node, build

_NAMES = 150


def test_many_names_in_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree: dict[Name, Node] = {}
    for number in range(_NAMES):
        tree |= {f"d/{number}": File(b"x"), f"d/other{number}": Link(f"d/{number}")}
    lower = build(tmp_path / "lower", tree)
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir()
    work.mkdir()
    with in_process([lower], upper, work) as union:
        for number in range(_NAMES):
            union.write(f"d/{number}", b"y")
            union.unlink(f"d/other{number}")
    # Killed in between: counted as gone, and its whiteout was not made. One more was never a path.
    hidden = upper / "d/other7"
    hidden.unlink()
    (work / "links/dirty").touch()
    token = next(path for path in (work / "links").iterdir() if path.read_bytes() == b"d/other8")
    token.write_bytes(b"d/../d/other8")
    listed: list[object] = []
    real_listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda *arguments: listed.append(arguments) or real_listdir(*arguments))
    with in_process([lower], upper, work) as union:
        assert len(listed) < 20, "each directory is listed once, not for each name"
        assert union.read("d/other7") == b"y" and union.union.stat(union.find("d/other7"))[1] == 2
        assert union.names("d").count("other8") == 0
        assert union.union.stat(union.find("d/5"))[1] == 1
