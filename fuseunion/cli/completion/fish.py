"""Completion for fish (complete(1))."""

from __future__ import annotations

from fuseunion.cli.completion.spec import CHOICES, MOUNT, PATHS, WORD_LIST, Command, Option

_HEAD = """\
# fish completion of fuseunion; made by: fuseunion completion fish

function __fuseunion_command
    set -l words (commandline -opc)
    test (count $words) -gt 1; and contains -- $words[2] @COMMANDS@; and echo $words[2]; or echo mount
end

function __fuseunion_words
    set -l given (string match -r '^.*,' -- (commandline -ct))
    for word in @WORDS@
        echo $given$word
    end
end

complete -c fuseunion -f
"""


def script(commands: list[Command]) -> str:
    """The whole script: a file `fuseunion.fish` for ~/.config/fish/completions."""
    named = [command for command in commands if command.name != MOUNT]
    names = " ".join(command.name for command in named)
    lines = [_HEAD.replace("@COMMANDS@", names).replace("@WORDS@", " ".join(CHOICES[WORD_LIST]))]
    first = "test (count (commandline -opc)) -eq 1"
    lines += [f"complete -c fuseunion -n '{first}' -a {each.name} -d {_quoted(each.says)}" for each in named]
    for command in commands:
        when = f"-n 'test (__fuseunion_command) = {command.name or 'mount'}'"
        operands = _quoted(" ".join(command.operands)) if command.operands else "'(__fish_complete_directories)'"
        if command.files:
            second = f"-n 'test (__fuseunion_command) = {command.name}; and test (count (commandline -opc)) -eq 2'"
            lines.append(f"complete -c fuseunion {second} -a {operands}")
            after = f"-n 'test (__fuseunion_command) = {command.name}; and test (count (commandline -opc)) -gt 2'"
            lines.append(f"complete -c fuseunion {after} -F")
        else:
            lines.append(f"complete -c fuseunion {when} -a {operands}")
        lines += [f"complete -c fuseunion {when} {_option(option)}" for option in command.options]
    return "\n".join([*lines, ""])


def _option(option: Option) -> str:
    words = [
        f"-l {spelling[2:]}" if spelling.startswith("--") else f"-s {spelling[1:]}" for spelling in option.spellings
    ]
    if option.argument == WORD_LIST:
        words.append("-x -a '(__fuseunion_words)'")
    elif option.argument in CHOICES:
        words.append(f"-x -a '{' '.join(CHOICES[option.argument])}'")
    elif option.argument == "DIR":
        words.append("-x -a '(__fish_complete_directories)'")
    elif option.argument in PATHS:
        words.append("-r -F")
    elif option.argument:
        words.append("-x")
    return " ".join([*words, "-d", _quoted(option.says)])


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
