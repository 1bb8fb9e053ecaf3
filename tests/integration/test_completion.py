"""TAB, asked of the real shells: bash, zsh on a terminal, fish."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuseunion.cli.completion import spec
from fuseunion.cli.main import COMMANDS, run
from fuseunion.mounting.options.vocabulary import WORDS

LIMIT = 20.0
"""Seconds that a shell may take to answer."""


def script(shell: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert run(["fuseunion", "completion", shell]) == 0
    path = directory / shell
    path.write_text(capsys.readouterr().out)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with directories to be completed."""
    for name in ("base", "base two", "bare"):
        (tmp_path / "in" / name).mkdir(parents=True)
    (tmp_path / "in/basefile").touch()
    return tmp_path / "in"


def bash(path: Path, place: Path, *words: str) -> list[str]:
    """What bash offers for the last word; the words are cut as bash cuts them, at `=` and `:` too."""
    asked = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _fuseunion; printf "%s\\n" "${COMPREPLY[@]}"'
    command = ["bash", "--norc", "-c", asked, "bash", str(path), "fuseunion", *words]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return sorted(filter(None, done.stdout.splitlines()))


def test_bash(tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script("bash", tmp_path, capsys)
    assert bash(path, place, "um") == ["umount"]
    assert bash(path, place, "ba") == ["bare", "base", "base two"]
    assert bash(path, place, "x", "um") == [], "a command stands first"
    assert {*COMMANDS, "bare", "base", "base two"} == set(bash(path, place, ""))
    assert bash(path, place, "--re") == ["--read-only"]
    assert bash(path, place, "umount", "-") == ["--discard", "--help", "--lazy", "-h", "-l"]
    assert bash(path, place, "--engine", "f") == bash(path, place, "--engine", "=", "f") == ["fastest", "fuse"]
    assert bash(path, place, "--engine", "=") == sorted(spec.CHOICES["ENGINE"])
    assert bash(path, place, "-o", "ro,allow") == ["ro,allow_other", "ro,allow_root"]
    assert bash(path, place, "-o", "") == sorted(WORDS)
    assert bash(path, place, "-o", "ro,fsync", "=", "") == ["0", "1", "auto", "strict", "volatile"]
    assert bash(path, place, "-o", "lowerdir", "=", "bas") == ["base", "base two"]
    assert bash(path, place, "base", ":", "bar") == bash(path, place, "base", "bar") == ["bare"]
    assert bash(path, place, "--log-file", "base") == ["base", "base two", "basefile"]
    assert bash(path, place, "--size", "") == []
    assert bash(path, place, "completion", "") == ["bash", "fish", "zsh"]
    assert bash(path, place, "image", "cl") == ["clone"]
    assert bash(path, place, "image", "clone", "base") == ["base", "base two", "basefile"]
    assert bash(path, place, "image", "create", "--type", "") == ["ext3", "ext4"]
    assert "--ephemeral" in bash(path, place, "doctor", "--"), "the doctor takes the options of a mount"


def fish(path: Path, place: Path, line: str) -> list[str]:
    home = {**os.environ, "HOME": str(place.parent), "XDG_CONFIG_HOME": str(place.parent)}
    asked = 'source $argv[1]; complete -C "$argv[2]"'
    command = ["fish", "--no-config", "-c", asked, str(path), f"fuseunion {line}"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True, env=home)
    assert done.stderr == ""
    return sorted(each.partition("\t")[0] for each in done.stdout.splitlines())


def test_fish(tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script("fish", tmp_path, capsys)
    assert fish(path, place, "um") == ["umount"]
    assert fish(path, place, "bar") == ["bare/"]
    assert fish(path, place, "--re") == ["--read-only"]
    assert fish(path, place, "umount --l") == ["--lazy"]
    assert fish(path, place, "--engine f") == ["fastest", "fuse"]
    assert fish(path, place, "-o ro,allow") == ["ro,allow_other", "ro,allow_root"]
    assert fish(path, place, "completion ") == ["bash", "fish", "zsh"]
    assert fish(path, place, "image cl") == ["clone"]
    assert "basefile" in fish(path, place, "image clone base")
    assert fish(path, place, "doctor --eph") == ["--ephemeral"]


class Zsh:
    """An interactive zsh on a terminal of its own."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._read(r"(READY)")

    def _read(self, pattern: str) -> str:
        seen = ""
        while not (found := re.search(pattern, seen)):
            ready, _, _ = select.select([self._terminal], [], [], LIMIT)
            assert ready, f"zsh said only {seen!r}"
            seen += os.read(self._terminal, 4096).decode(errors="replace")
        return found[1]

    def completed(self, line: str) -> str:
        """The line after TAB; ^X makes zsh print it, and empties it."""
        os.write(self._terminal, f"fuseunion {line}\t\x18".encode())
        return self._read(r"<<fuseunion (.*?)>>")


@contextmanager
def zsh(path: Path, place: Path) -> Iterator[Zsh]:
    (place.parent / ".zshrc").write_text(
        f"""\
autoload -Uz compinit; compinit -u -D
source {path}
report() {{ print -r -- "<<$BUFFER>>"; BUFFER= }}
zle -N report; bindkey '^X' report; bindkey '^I' complete-word
setopt no_auto_list no_beep; unset zle_bracketed_paste
print READY
"""
    )
    terminal, own = pty.openpty()
    environment = {**os.environ, "ZDOTDIR": str(place.parent), "TERM": "dumb", "PS1": "> "}
    with subprocess.Popen(
        ["zsh", "-i"], cwd=place, env=environment, stdin=own, stdout=own, stderr=own, start_new_session=True
    ) as shell:
        os.close(own)
        try:
            yield Zsh(terminal)
        finally:
            os.close(terminal)
            shell.kill()


def test_zsh(tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zsh(script("zsh", tmp_path, capsys), place) as shell:
        assert shell.completed("umo") == "umount "
        assert shell.completed("bar") == "bare/"
        assert shell.completed("--re") == "--read-only "
        assert shell.completed("umount --la") == "umount --lazy "
        assert shell.completed("umount -l bar") == "umount -l bare/"
        assert shell.completed("--engine k") == "--engine kernel "
        assert shell.completed("--engine=k") == "--engine=kernel "
        assert shell.completed("-o ro,allow_r") == "-o ro,allow_root"
        assert shell.completed("completion z") == "completion zsh "
        assert shell.completed("image clo") == "image clone "
        assert shell.completed("image clone basef") == "image clone basefile "
        assert shell.completed("doctor --eph") == "doctor --ephemeral "


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_good_syntax(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script(shell, tmp_path, capsys)
    assert shutil.which(shell), "scripts/setup --tests installs it"
    subprocess.run([shell, "-n", path], check=True, capture_output=True)


def test_every_command_has_what_to_say() -> None:
    for command in spec.commands():
        assert 4 < len(command.says) < 100 or command.name == spec.MOUNT, command
        assert "print this help" in [option.says for option in command.options]
