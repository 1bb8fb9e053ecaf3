"""Completion for zsh, by its function _arguments (zshcompsys(1))."""

from __future__ import annotations

import re

from fuseunion.cli.completion.spec import CHOICES, MOUNT, PATHS, WORD_LIST, Command, Option


def script(commands: list[Command]) -> str:
    """The whole script: a file `_fuseunion` for a directory of $fpath, which may also be sourced."""
    named = [command for command in commands if command.name != MOUNT]
    lines = [
        "#compdef fuseunion",
        "# zsh completion of fuseunion; made by: fuseunion completion zsh",
        "",
        "_fuseunion_words() {",
        "    compset -P '*,'",
        f"    compadd -S '' -- {' '.join(CHOICES[WORD_LIST])}",
        "}",
        "",
        "_fuseunion_first() {",
        "    if (( CURRENT == 2 )); then",
        "        local -a names=(",
        *(f"            {_quoted(f'{command.name}:{command.says}')}" for command in named),
        "        )",
        "        _describe command names",
        "    fi",
        "    _files -/",
        "}",
        "",
        "_fuseunion() {",
        "    case ${words[2]} in",
    ]
    for command in named:
        lines.append(f"        {command.name})")
        lines.append("            if (( CURRENT > 2 )); then")
        lines.append("                shift words; (( CURRENT-- ))")
        lines += _arguments(command, 16)
        lines.append("                return")
        lines.append("            fi")
        lines.append("            ;;")
    lines += ["    esac", *_arguments(commands[0], 4), "}", ""]
    lines += ['if [ "$funcstack[1]" = _fuseunion ]; then', '    _fuseunion "$@"', "else"]
    lines += ["    compdef _fuseunion fuseunion", "fi", ""]
    return "\n".join(lines)


def _arguments(command: Command, indent: int) -> list[str]:
    if command.operands:
        words = f"word:({' '.join(command.operands)})"
        rest = [f"1:{words}", "*:file:_files"] if command.files else [f"*:{words}"]
    elif command.name == MOUNT:
        rest = ["*:directory:_fuseunion_first"]
    else:
        rest = ["*:directory:_files -/"]
    specs = [*(spec for option in command.options for spec in _specs(option)), *rest]
    space = " " * indent
    return (f"{space}_arguments -S " + f" \\\n{space}    ".join(map(_quoted, specs))).splitlines()


def _specs(option: Option) -> list[str]:
    says = re.sub(r"([\[\]:\\])", r"\\\1", option.says)
    value = ""
    if option.argument:
        value = f":{re.sub(r'[^A-Za-z]+', ' ', option.argument).strip().lower()}:{_values(option.argument)}"
    before = "*" if option.is_repeatable else f"({' '.join(option.spellings)})"
    equals = {spelling: "=" if value and spelling.startswith("--") else "" for spelling in option.spellings}
    return [f"{before}{spelling}{equals[spelling]}[{says}]{value}" for spelling in option.spellings]


def _values(argument: str) -> str:
    if argument == WORD_LIST:
        return "_fuseunion_words"
    if argument in CHOICES:
        return f"({' '.join(CHOICES[argument])})"
    if argument in PATHS:
        return "_files -/" if argument == "DIR" else "_files"
    return " "


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
