"""The commands read their arguments alike: `--`, `-h`, unknown options, missing and empty operands (cli/parser.py)."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from fuseunion.cli.main import COMMANDS, run
from fuseunion.cli.parser import CommandParser
from fuseunion.errors import ExitCode, UserError

ENOUGH = {
    "add-lower": [],
    "apply": ["--dry-run"],
    "commit": ["--fakeroot"],
    "diff": ["--stat"],
    "export": ["-o", "x.tar"],
    "import": ["--upper"],
    "check": ["--repair"],
    "convert": ["--to", "oci"],
    "flatten": [],
    "restore": [],
    "snapshot": [],
    "snapshots": [],
    "vacuum": ["--lower", "base"],
    "chown": ["--to", "root"],
    "completion": [],
    "doctor": ["--repair"],
    "exec": ["--pid"],
    "image": ["info"],
    "log": ["--follow"],
    "promote": ["-r"],
    "refresh": [],
    "status": [],
    "sync": [],
    "top": [],
    "umount": ["--lazy"],
    "which": ["--json"],
}
"""What each command needs beside its operands."""


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: ExitCode) -> str:
    """The one line that a command says when it fails."""
    assert run(["fuseunion", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fuseunion: ") and err.count("\n") == 1, err
    return err.removeprefix("fuseunion: ").rstrip("\n")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("words", [["-h"], ["--help"], ["dir", "-h"], ["-h", "--bogus"], ["--bogus", "--help", "dir"]])
def test_help(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it stands, and whatever else is wrong."""
    assert run(["fuseunion", command, *words]) == ExitCode.OK
    assert capsys.readouterr() == (importlib.import_module(COMMANDS[command]).HELP, "")


def test_help_of_the_mount(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fuseunion", "lower", "-h", "--", "merged"]) == ExitCode.OK
    assert capsys.readouterr().out.startswith("Usage: fuseunion LOWER")
    assert "'-h'" in said(capsys, "--read-only", "--", "lower", "-h", code=ExitCode.LAYERS)


RUNS_ANOTHER = {"exec"}
"""What stands after `--` is another command, and what is unknown is handed on to the mount."""


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - RUNS_ANOTHER))
@pytest.mark.parametrize("word", ["--bogus", "-x", "--bogus=1", "-5"])
def test_an_unknown_option(command: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = said(capsys, command, *ENOUGH[command], "dir", word, code=ExitCode.USAGE)
    assert line == f"unknown option '{word}'; see fuseunion {command} --help"


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - RUNS_ANOTHER))
def test_an_abbreviation_is_unknown_too(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = said(capsys, command, *ENOUGH[command], "dir", "--hel", code=ExitCode.USAGE)
    assert line == "unknown option '--hel'; did you mean --help?"


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"completion", *RUNS_ANOTHER}))
def test_names_that_begin_with_a_dash(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """After `--` nothing is an option, not even -h or another `--`."""
    after = {
        "promote": ["-h", "--"],
        "add-lower": ["-h", "--"],
        "which": ["-h", "--"],
        "snapshot": ["-h", "--"],
        "restore": ["-h", "--"],
        "import": ["-h", "--"],
        "apply": ["-h", "--"],
        "commit": ["a", "-h", "--"],
    }.get(command, ["-h"])
    assert "'-h'" in said(capsys, command, *ENOUGH[command], "--", *after, code=ExitCode.LAYERS)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"doctor", "status"}))
@pytest.mark.parametrize("words", [[], ["--"]])
def test_missing_operands(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert f"fuseunion {command}" in said(capsys, command, *ENOUGH[command], *words, code=ExitCode.USAGE)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_operand(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = said(capsys, command, *ENOUGH[command], "", code=ExitCode.USAGE)
    assert line == f"argument {len(ENOUGH[command]) + 1} of 'fuseunion {command}' is empty; is a variable not set?"


@pytest.mark.parametrize("command", ["chown", "promote", "umount"])
def test_options_may_follow_operands(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    operands = ["missing", "path"] if command == "promote" else ["missing"]
    assert "'missing'" in said(capsys, command, *operands, *ENOUGH[command], code=ExitCode.LAYERS)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["chown", "u", "--to"], "--to needs a value; see fuseunion chown --help"),
        (["chown", "u", "--map", "--dry-run"], "--map needs a value; see fuseunion chown --help"),
        (["umount", "--lazy=1", "m"], "--lazy takes no value; see fuseunion umount --help"),
        (["promote", "-rx", "m", "p"], "--recursive takes no value; see fuseunion promote --help"),
        (["completion", "ksh"], "give one of the shells bash, zsh, fish: fuseunion completion bash"),
        (["doctor", "--json=yes"], "--json takes no value; see fuseunion doctor --help"),
        (["doctor", "--repair"], "give the UPPER or the MERGED of a ranch: fuseunion doctor --repair UPPER"),
    ],
)
def test_values(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, *arguments, code=ExitCode.USAGE) == line


def test_values_and_operands() -> None:
    parser = CommandParser("chown", "")
    parser.values("--map")
    parser.value("--work")
    given = parser.parse(["a", "--map", "1:2:3", "--work=-w", "b", "--map=4:5:6", "-", "--", "--map", "--"])
    assert given is not None
    assert (given.map, given.work) == (["1:2:3", "4:5:6"], "-w")
    assert given.operands == ["a", "b", "-", "--map", "--"]
    again = parser.parse([])
    assert again is not None and again.map == []


def test_the_doctor_hands_on_the_options_of_a_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its own, before them, and after `--`."""
    seen: list[list[str]] = []

    def parse(arguments: list[str]) -> None:
        seen.append(arguments)
        raise UserError("enough")

    monkeypatch.setattr("fuseunion.cli.commands.doctor.parse", parse)
    mount = ["-o", "noacl,timeout=0", "--engine=fuse", "--uid-map", "0:0:1", "-r", "lower", "upper", "merged"]
    for words in (["--json", *mount], [*mount, "--json"], ["--json", *mount, "--", "-odd"]):
        assert run(["fuseunion", "doctor", *words]) == ExitCode.USAGE
    assert seen == [mount, mount, [*mount, "--", "-odd"]]


def test_argparse_is_for_those_who_need_it() -> None:
    code = "import sys, fuseunion.cli.main, fuseunion.cli.mount; print('argparse' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
