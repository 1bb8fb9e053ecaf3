"""Completion for bash.

bash cuts words at `=` and `:` (COMP_WORDBREAKS), so `--engine=fu` comes as three words, and of `a:b` only `b` is
completed.
"""

from __future__ import annotations

import shlex

from fuseunion.cli.completion.spec import CHOICES, MOUNT, PATHS, WORD_LIST, Command

_SCRIPT = """\
# bash completion of fuseunion; made by: fuseunion completion bash

_fuseunion() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
    local before='' command='' options='' operands='' files='' list='' word
    COMPREPLY=()
    if [[ $cur == [=:] ]]; then
        cur=''
        [[ ${COMP_WORDS[COMP_CWORD]} == : ]] || before=$prev
    elif [[ $prev == = ]] && (( COMP_CWORD >= 2 )); then
        before=${COMP_WORDS[COMP_CWORD-2]}
    fi
    case ${COMP_WORDS[1]} in
        @COMMAND_PATTERN@) (( COMP_CWORD > 1 )) && command=${COMP_WORDS[1]} ;;
    esac
    case $command in
@OPTIONS@
    esac
    if [[ -n $before && $before != -* ]]; then
        # A word of -o with a value.
        before=${before##*,}
        for word in @WORDS@; do
            [[ $word == "$before="?* ]] && list+="${word#*=} "
        done
        if [[ -n $list ]]; then
            COMPREPLY=($(compgen -W "$list" -- "$cur"))
        else
            _fuseunion_paths -d "$cur"
        fi
        return
    fi
    case ${before:-$prev} in
@VALUES@
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
        return
    fi
    if [[ -n $operands && ( -z $files || COMP_CWORD -eq 2 ) ]]; then
        COMPREPLY=($(compgen -W "$operands" -- "$cur"))
        return
    fi
    _fuseunion_paths "${files:--d}" "$cur"
    (( COMP_CWORD == 1 )) && COMPREPLY+=($(compgen -W '@COMMAND_LIST@' -- "$cur"))
}

# One line for each: a name may have spaces in it.
_fuseunion_paths() {
    local IFS=$'\\n'
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen "$1" -- "$2"))
}

complete -F _fuseunion fuseunion
"""


def script(commands: list[Command]) -> str:
    """The whole script."""
    names = [command.name for command in commands if command.name != MOUNT]
    replaced = {
        "@COMMAND_PATTERN@": "|".join(names),
        "@COMMAND_LIST@": " ".join(names),
        "@OPTIONS@": "\n".join(map(_options, commands)),
        "@VALUES@": "\n".join(_values(commands)),
        "@WORDS@": " ".join(CHOICES[WORD_LIST]),
    }
    text = _SCRIPT
    for name, value in replaced.items():
        text = text.replace(name, value)
    return text


def _options(command: Command) -> str:
    spellings = " ".join(spelling for option in command.options for spelling in option.spellings)
    operands = f"; operands='{' '.join(command.operands)}'" if command.operands else ""
    operands += "; files=-f" if command.files else ""
    return f"        {shlex.quote(command.name)}) options='{spellings}'{operands} ;;"


def _values(commands: list[Command]) -> list[str]:
    """A branch for each option with a value, which has the same one in every command."""
    seen: dict[str, str] = {}
    for command in commands:
        for option in command.options:
            if option.argument:
                seen.setdefault("|".join(option.spellings), option.argument)
    branches = []
    for spellings, argument in seen.items():
        if argument == WORD_LIST:
            words = " ".join(CHOICES[argument])
            body = (
                "[[ $cur == *,* ]] && list=${cur%,*},\n"
                "            compopt -o nospace 2>/dev/null\n"
                f'            COMPREPLY=($(compgen -P "$list" -W \'{words}\' -- "${{cur##*,}}"))\n'
                "            return"
            )
        elif argument in CHOICES:
            body = f"COMPREPLY=($(compgen -W '{' '.join(CHOICES[argument])}' -- \"$cur\")); return"
        elif argument in PATHS:
            body = f'_fuseunion_paths {"-d" if argument == "DIR" else "-f"} "$cur"; return'
        else:
            body = "return"
        branches.append(f"        {spellings}) {body} ;;")
    return branches
