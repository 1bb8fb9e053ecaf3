"""Finding the examples of README.md and docs/*.md that are marked for testing.

A mark is an HTML comment, which no reader sees, before an indented or fenced block:

    <!-- test: NAME -->                      commands; blocks of one name and one document run one after another
    <!-- test: NAME as root, user -->        who runs them (default: these two; see `Who`)
    <!-- test: NAME file PATH -->            the contents of the file PATH, which is written at that point

Each line is a command. A block in which lines begin with `$ ` is a session: only those lines are run, and the lines
between them are output that must appear. `...` in it stands for anything, 1000 for any id. Lines that begin with `# `
are typed into the shell that the `$ ` line before them started.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.support.interpreter import PROJECT

MARK = re.compile(r"<!-- test: (?P<name>\S+)(?: as (?P<who>[a-z, ]+?))?(?: file (?P<path>\S+))? -->")
FENCE = "```"
BOUNDARY = "\x1d"
"""Printed before each command of a session, so that its output can be told from that of the one before."""


class Who(Enum):
    """Who runs an example."""

    ROOT = "root"
    USER = "user"
    """An ordinary user."""
    PODMAN = "podman"
    """An ordinary user with a rootless container store (make conformance)."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command and what it is said to print."""

    text: str
    shown: tuple[str, ...] = ()
    typed: tuple[str, ...] = ()
    """What is typed into the shell that this command starts."""

    def script(self) -> str:
        """The command for a shell."""
        if not self.typed:
            return self.text
        lines = "\n".join(["set -e", *self.typed])
        return f"{self.text} <<'TYPED'\n{lines}\nTYPED"

    def fault(self, output: str) -> str:
        """What of the output that is shown did not come, or an empty string."""
        place, flat = 0, " ".join(output.split())
        for line in self.shown:
            words = re.escape(" ".join(line.split()))
            found = re.compile(words.replace(r"\.\.\.", ".*?").replace("1000", r"\d+")).search(flat, place)
            if found is None:
                return f"{self.text}: {line.strip()!r} is not in what it printed:\n{output}"
            place = found.end()
        return ""


@dataclass(frozen=True, slots=True)
class Example:
    """One example of one document."""

    document: str
    name: str
    who: tuple[Who, ...]
    commands: tuple[Command, ...]

    def script(self, between: str = "") -> str:
        """All commands, each after a boundary, and what is to be run after each."""
        return "".join(f"printf '{BOUNDARY}'\n{command.script()}\n{between}\n" for command in self.commands)

    def faults(self, output: str) -> list[str]:
        """Where the output of `script` is not what the document shows."""
        pieces = output.split(BOUNDARY)[1:]
        return [fault for command, piece in zip(self.commands, pieces, strict=True) if (fault := command.fault(piece))]


def documents() -> list[Path]:
    """The files that may hold examples."""
    return [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


def examples(document: Path) -> list[Example]:
    """The marked examples of one document, in its order."""
    found: dict[str, Example] = {}
    for mark, block in _marked_blocks(document.read_text().splitlines()):
        name, who, path = mark["name"], mark["who"], mark["path"]
        commands = (_file(path, block),) if path else tuple(_commands(block))
        assert commands, f"{document.name}: nothing to run in the example {name}"
        if name in found:
            before = found[name]
            found[name] = Example(before.document, name, before.who, before.commands + commands)
        else:
            roles = tuple(Who(word.strip()) for word in who.split(",")) if who else (Who.ROOT, Who.USER)
            found[name] = Example(document.name, name, roles, commands)
    return list(found.values())


def _marked_blocks(lines: list[str]) -> Iterator[tuple[re.Match[str], list[str]]]:
    for number, line in enumerate(lines):
        if mark := MARK.fullmatch(line.strip()):
            yield mark, _block(lines[number + 1 :])


def _block(lines: list[str]) -> list[str]:
    """The first fenced or indented block, without its fence or indentation."""
    while lines and not lines[0].strip():
        lines = lines[1:]
    if lines[0].startswith(FENCE):
        return lines[1 : lines.index(FENCE, 1)]
    block = []
    for line in lines:
        if line.strip() and not line.startswith("    "):
            break
        block.append(line[4:])
    return block


def _file(path: str, block: list[str]) -> Command:
    # The shell expands a leading ~, so the path is not quoted.
    lines = "\n".join(block)
    return Command(f"mkdir -p $(dirname {path}); printf '%s\\n' {shlex.quote(lines)} >{path}")


def _commands(block: list[str]) -> list[Command]:
    if not any(line.startswith("$ ") for line in block):
        return [Command(line) for line in filter(str.strip, block)]
    found: list[Command] = []
    for line in filter(str.strip, block):
        if line.startswith("$ "):
            found.append(Command(line.removeprefix("$ ")))
            continue
        last = found.pop()
        if line.startswith("# "):
            found.append(Command(last.text, last.shown, (*last.typed, line.removeprefix("# "))))
        else:
            found.append(Command(last.text, (*last.shown, line), last.typed))
    return found
