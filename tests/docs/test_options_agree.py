"""One description of the command line: docs/options.md.

The manual page is made of it, and is what `make manual` would write. The help texts are written by hand, because they
are short; each is read into one shape, as is the reference: for each command ("" is the mount) its options, an option
being its spellings and its argument, as `-r --read-only` or `--work DIR`. What one has and the other lacks fails with
its name. So does an option or a word of -o that is described and not understood, or understood and not described. The
exit codes have their reference in docs/exit-codes.md, and the numbers in fuseunion/errors.py.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseunion.cli.arguments import OPTIONS
from fuseunion.cli.completion import spec
from fuseunion.cli.main import COMMANDS, run
from fuseunion.cli.parser import CommandParser
from fuseunion.errors import ExitCode
from fuseunion.mounting.options import Form
from fuseunion.mounting.options.options_builder import OptionsBuilder
from fuseunion.mounting.options.vocabulary import WORDS
from tests.support.interpreter import PROJECT

REFERENCE = PROJECT / "docs/options.md"
CODES = PROJECT / "docs/exit-codes.md"
MANUAL = PROJECT / "docs/man/fuseunion.1"

MOUNT = ""
ALL = (MOUNT, *sorted(COMMANDS))
INTERRUPTED = 130
"""The shell's number for a program that ^C ended; no ExitCode."""

Options = set[str]


def _option(spellings: list[str], argument: str) -> str:
    return " ".join([*sorted(spellings, key=len), *([argument] if argument else [])])


# -- --help ------------------------------------------------------------------------------------------------------------


def _help(command: str) -> str:
    """What `fuseunion COMMAND --help` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        assert run(["fuseunion", *filter(None, [command]), "--help"]) == 0
    return printed.getvalue()


def options_of_help(text: str) -> Options:
    """As completion reads them."""
    return {_option([*option.spellings], option.argument) for option in spec.options(text)}


# -- docs/options.md ---------------------------------------------------------------------------------------------------


def _section(text: str, heading: str) -> str:
    """What stands beneath a heading, up to the next of its level or a higher one."""
    level = heading.split(" ")[0]
    body = f"\n{text}".partition(f"\n{heading}\n")[2]
    assert body, f"no section '{heading}'"
    return re.split(rf"^#{{1,{len(level)}}} ", body, flags=re.MULTILINE)[0]


def _rows(section: str) -> Iterator[list[str]]:
    """The code in the first column of each row of a section's table."""
    for line in section.splitlines():
        if line.startswith("| `"):
            yield re.findall(r"`([^`]+)`", re.split(r"(?<!\\) \| ", line)[0])


def options_of_reference(text: str, command: str) -> Options:
    """The rows of the table of a command; the argument stands with the last spelling."""
    section = _section(text, f"### {command}" if command else "## Options of a mount")
    found = set()
    for spellings in _rows(section):
        names = [spelling.split(" ")[0] for spelling in spellings]
        found.add(_option(names, spellings[-1].partition(" ")[2]))
    return found


# -- the manual page ---------------------------------------------------------------------------------------------------


def _part(text: str, heading: str) -> str:
    """What stands beneath `.Sh HEADING` or `.Ss HEADING` in mdoc(7), up to the next."""
    body = text.partition(f"\n{heading}\n")[2]
    assert body, f"no section '{heading}'"
    return re.split(r"^\.S[hs] ", body, flags=re.MULTILINE)[0]


def options_of_manual(text: str, command: str) -> Options:
    """`.It Fl r , Fl -read-only` and `.It Fl -work Ar DIR`: Fl writes a dash, Ar an argument."""
    part = _part(text, f".Ss Options of {command}" if command else ".Ss Options of a mount")
    found = set()
    for line in re.findall(r"^\.It (Fl .*)$", part, re.MULTILINE):
        flags, _, argument = line.partition(" Ar ")
        found.add(_option([f"-{name}" for name in re.findall(r"Fl (\S+)", flags)], argument))
    return found


def _items(part: str, macro: str) -> list[str]:
    return [word for line in re.findall(rf"^\.It {macro} (.*)$", part, re.MULTILINE) for word in line.split(" , ")]


# -- they agree --------------------------------------------------------------------------------------------------------


def reference() -> str:
    return REFERENCE.read_text()


def manual() -> str:
    return MANUAL.read_text()


@pytest.mark.parametrize("command", ALL)
def test_the_help_agrees(command: str) -> None:
    assert options_of_help(_help(command)) == options_of_reference(reference(), command)


def test_the_manual_is_made_of_this() -> None:
    made = subprocess.run([sys.executable, PROJECT / "scripts/manual"], capture_output=True, text=True, check=True)
    assert manual() == made.stdout, "run: make manual"


@pytest.mark.parametrize("command", ALL)
def test_the_manual_agrees(command: str) -> None:
    assert options_of_manual(manual(), command) == options_of_reference(reference(), command)


def _understood(command: str) -> set[str]:
    """The spellings that the parser of a command knows."""
    if command == MOUNT:
        return set(OPTIONS)
    known: list[set[str]] = []
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(io.StringIO()):
        patched.setattr(CommandParser, "parse_known", lambda parser, _: known.append(parser.options))
        run(["fuseunion", command, "--help"])
    (spellings,) = known
    return spellings


@pytest.mark.parametrize("command", ALL)
def test_what_is_described_is_what_is_understood(command: str) -> None:
    described = " ".join(options_of_reference(reference(), command)).split()
    assert _understood(command) == {word for word in described if word.startswith("-")}


def test_every_command_has_its_section_and_no_other() -> None:
    assert set(re.findall(r"^### (\S+)$", reference(), re.MULTILINE)) == set(COMMANDS)
    sections = set(re.findall(r"^\.Ss Options of (.*)$", manual(), re.MULTILINE))
    assert sections == {*COMMANDS, "a mount"}


Call = tuple[str, tuple[str, ...]]
"""One line of a synopsis: the command, and the options in it."""


def _calls_of_reference() -> list[Call]:
    calls = []
    for line in re.findall(r"^    fuseunion (.*)$", reference().partition("\n## ")[0], re.MULTILINE):
        command = line.split(" ")[0]
        calls.append((command if command in COMMANDS else MOUNT, tuple(re.findall(r"--[a-z-]+", line))))
    return calls


def _calls_of_manual() -> list[Call]:
    calls = []
    for call in re.split(r"^\.Nm\n", _part(manual(), ".Sh SYNOPSIS"), flags=re.MULTILINE)[1:]:
        command = re.match(r"\.Cm (\S+)", call)
        options = tuple(f"-{name}" for name in re.findall(r"\bFl (-[a-z-]+)", call))
        calls.append((command[1] if command else MOUNT, options))
    return calls


def test_the_synopses_agree() -> None:
    assert _calls_of_manual() == _calls_of_reference()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_synopsis_has_every_option_of_a_command(command: str) -> None:
    shown = [options for name, options in _calls_of_reference() if name == command]
    assert shown
    rows = " ".join(options_of_reference(reference(), command)).split()
    assert {option for options in shown for option in options} == {
        word for word in rows if word.startswith("--") and word != "--help"
    }


def test_the_usage_of_the_help_has_no_other_options() -> None:
    for command in ALL:
        usage = _help(command).partition("\n\n")[0]
        known = " ".join(options_of_reference(reference(), command)).split()
        assert set(re.findall(r"--[a-z-]+", usage)) - {"--help"} <= set(known), command


# -- the words of -o ---------------------------------------------------------------------------------------------------


def _words() -> list[str]:
    return [word for row in _rows(_section(reference(), "## The words of `-o`")) for word in row]


def _bare(word: str) -> str:
    """`timeout=SECONDS` as `timeout=`; a lower-case value is one that has to be written like this."""
    name, equals, value = word.partition("=")
    return name + equals + ("" if value.isupper() else value)


def test_the_words_agree() -> None:
    # `xattr_permissions=1`, `=2`: the second is short for the same word.
    words: list[str] = []
    for word in _words():
        words.append(words[-1].partition("=")[0] + word if word.startswith("=") else word)
    assert _items(_part(manual(), r".Ss Words of \-o"), "Cm") == words
    assert sorted(WORDS) == sorted(map(_bare, words))


@pytest.mark.parametrize("word", [word for word in _words() if "=" not in word or word.partition("=")[2].islower()])
def test_a_word_is_understood(word: str) -> None:
    assert OptionsBuilder(Form.PLAIN).apply_words(word) == []


# -- exit codes, environment, files ------------------------------------------------------------------------------------


def test_the_exit_codes_agree() -> None:
    numbers = {*map(int, ExitCode), INTERRUPTED}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", CODES.read_text(), re.MULTILINE)} == numbers
    assert {
        int(code) for code in re.findall(r"^\.It (\d+)$", _part(manual(), ".Sh EXIT STATUS"), re.MULTILINE)
    } == numbers


def _names(heading: str) -> list[str]:
    return [name for row in _rows(_section(reference(), heading)) for name in row]


def test_the_environment_agrees() -> None:
    variables = _names("## Environment")
    assert _items(_part(manual(), ".Sh ENVIRONMENT"), "Ev") == variables
    source = "".join(path.read_text() for path in (PROJECT / "fuseunion").rglob("*.py"))
    assert all(variable in source for variable in variables)
    # The other way round: what is read of the environment by a name of its own is documented.
    assert set(re.findall(r'"(FUSE[A-Z_]+)"', source)) <= set(variables)


def test_the_files_agree() -> None:
    assert _items(_part(manual(), ".Sh FILES"), "Pa") == _names("## Files")


# -- the parsers see what they should ----------------------------------------------------------------------------------


def test_the_shapes() -> None:
    help_text = (
        "Usage: x [--no]\n\nOptions:\n  -r, --read-only       none\n  --work DIR  a --b\n  -o, --options A[,A]\n   text"
    )
    assert options_of_help(help_text) == {"-r --read-only", "--work DIR", "-o --options A[,A]"}
    table = "### x\n\n| option | |\n|---|---|\n| `-r`, `--read-only` | `-x` |\n| `--work DIR` | |\n## y\n| `-z` |\n"
    assert options_of_reference(table, "x") == {"-r --read-only", "--work DIR"}
    page = (
        "\n.Ss Options of x\n.It Fl r , Fl -read-only\nNone\n.Fl -x\n.It Fl -work Ar DIR\n.Ss Options of y\n.It Fl -z\n"
    )
    assert options_of_manual(page, "x") == {"-r --read-only", "--work DIR"}


@pytest.mark.parametrize("path", [REFERENCE, MANUAL], ids=lambda path: Path(path).name)
def test_a_missing_option_is_found(path: Path) -> None:
    """The tests above can fail: without its line about --dry-run, each of the two differs from the help."""
    lines = path.read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if not re.match(r"\| `--dry-run`|\.It Fl -dry-run", line))
    read = options_of_reference if path == REFERENCE else options_of_manual
    assert options_of_help(_help("chown")) - read(text, "chown") == {"--dry-run"}
