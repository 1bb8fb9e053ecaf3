"""Help, documentation and messages name the commands and options that there are, and no others.

That help, docs/options.md and the manual page agree on every option is in test_options_agree.py.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseunion.cli import arguments, mount
from fuseunion.cli.main import COMMANDS
from fuseunion.errors import UserError
from fuseunion.mounting.options.vocabulary import SILENT
from tests.docs.examples import documents
from tests.support.interpreter import PROJECT

OPTIONS = PROJECT / "docs/options.md"
MANUAL = PROJECT / "docs/man/fuseunion.1"

LONG = re.compile(r"(?<![\w-])--([a-z][a-z-]+)")


def synopsis() -> str:
    """The indented block at the head of docs/options.md."""
    return "\n".join(line for line in OPTIONS.read_text().split("\n## ")[0].splitlines() if line.startswith("    "))


def long_options(text: str) -> set[str]:
    return set(LONG.findall(text))


def test_every_command_is_in_the_help() -> None:
    usage = mount.HELP.partition("\n\n")[0]
    assert {name for name in COMMANDS if re.search(rf"\b{name}\b", usage)} == set(COMMANDS)


def test_every_command_is_in_the_synopsis() -> None:
    assert set(re.findall(r"fuseunion ([a-z][a-z-]*)", synopsis())) == set(COMMANDS)


def test_every_command_is_in_the_synopsis_of_the_manual() -> None:
    text = MANUAL.read_text()
    shown = text.partition(".Sh SYNOPSIS")[2].partition(".Sh ")[0]
    assert set(re.findall(r"^\.Cm ([a-z][a-z-]*)$", shown, re.MULTILINE)) == set(COMMANDS)
    described = text.partition(".Sh DESCRIPTION")[2].partition(".Sh ")[0]
    assert set(COMMANDS) <= set(re.findall(r"^\.Cm ([a-z][a-z-]*)$", described, re.MULTILINE))


def test_the_help_of_the_mount_has_the_options_that_are_parsed() -> None:
    words = {
        node.value
        for node in ast.walk(ast.parse(Path(arguments.__file__).read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    parsed = {word.removeprefix("--") for word in words if re.fullmatch("--[a-z-]+", word)}
    assert long_options(mount.HELP) == parsed | {"help", "version"}


def test_the_words_that_are_accepted_in_silence_are_documented() -> None:
    listed = OPTIONS.read_text().partition("Accepted in silence")[2].partition("\n## ")[0]
    words = {word.partition("=")[0] for code in re.findall(r"`([^`]+)`", listed) for word in code.split()}
    values = {"nfs_export", "verity"}  # of which one value only
    no_wish = {f"no{word}" for word in ("atime", "diratime", "relatime", "strictatime", "lazytime")}
    assert words - values - no_wish - {"x-*"} == SILENT


# -- `fuseunion WORD` --------------------------------------------------------------------------------------------------


def messages(source: Path) -> Iterator[str]:
    """What a module may say: its strings but the docstrings; with X for what is filled in."""
    tree = ast.parse(source.read_text())
    quiet = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            quiet |= {id(part) for part in node.values}
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in quiet:
            yield node.value


def code(document: Path) -> Iterator[str]:
    """What stands as code in a document: spans in backticks, and indented or fenced lines."""
    fenced = False
    for line in document.read_text().splitlines():
        fenced ^= line.startswith("```")
        if fenced or line.startswith("    "):
            yield line
        else:
            yield from re.findall(r"`([^`]+)`", line)


def is_a_call(words: str) -> bool:
    """Whether what follows `fuseunion` is a command, or two directories or more, as a mount has."""
    text = re.split(r"  +|[`'\"]? (?:#|&)|[;)]|\d?>", words)[0]
    if text.split()[0] in COMMANDS:
        return True
    try:
        return bool(arguments.parse(shlex.split(text)).lowers)
    except (UserError, ValueError):
        return False


TEXTS = [
    *(("messages", path) for path in sorted((PROJECT / "fuseunion").rglob("*.py"))),
    *(("code", path) for path in documents()),
]


@pytest.mark.parametrize(("kind", "path"), TEXTS, ids=[str(path.relative_to(PROJECT)) for _, path in TEXTS])
def test_no_command_is_named_that_is_not_there(kind: str, path: Path) -> None:
    for text in messages(path) if kind == "messages" else code(path):
        for words in re.findall(r"(?<!live )\bfuseunion ([a-z].*)", text):
            assert is_a_call(words), f"fuseunion {words}"


@pytest.mark.parametrize("words", ["squash UPPER", "squash", "squash' removes such", "mount a:b", "execute"])
def test_what_is_no_call(words: str) -> None:
    """The test above can fail: the second was in a message once."""
    assert not is_a_call(words)
