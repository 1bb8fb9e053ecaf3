"""fuseunion vacuum: remove from an upper what changes nothing of what is shown."""

from __future__ import annotations

import os
from contextlib import ExitStack

from fuseunion.cli.commands.layers import said
from fuseunion.cli.parser import CommandParser
from fuseunion.errors import ExitCode, UserError, one_line
from fuseunion.mounting.checks.placement import Part
from fuseunion.mounting.options import Options
from fuseunion.offline.layers import opening
from fuseunion.offline.upkeep import vacuum

HELP = """\
Usage: fuseunion vacuum UPPER --lower LOWER[:LOWER...] [--work DIR] [--dry-run]

Removes from the upper directory UPPER, which must not be mounted, what changes nothing of what it shows over its lower
directories: copies that are equal to the lower in everything, times of modification included, whiteouts of nothing, and
copied directories that hold nothing and say nothing.

Options:
  --lower LOWER[:LOWER...]  the lower directories, topmost first; repeatable
  --work DIR                the work directory of UPPER, when that is not the default one
  --dry-run                 print what would be removed, and change nothing
  -h, --help                print this help

Examples:
  fuseunion vacuum upper --lower base --dry-run
"""


def main(arguments: list[str]) -> int:
    """Remove what is needless in one upper.

    Raises:
        UserError: USAGE; BUSY where it is mounted; LAYERS for what cannot be used; FAILURE where the system refuses.
    """
    parser = CommandParser("vacuum", HELP)
    parser.flag("--dry-run")
    parser.values("--lower")
    parser.value("--work")
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) != 1:
        raise UserError("give one directory; see fuseunion vacuum --help")
    (upper,) = asked.operands
    lowers = said.lowers_of(asked.lower)
    if not lowers:
        raise UserError("what is needless only the lower directories tell; give them with --lower")
    options = Options(opening.NOWHERE, ())._replace(metacopy=True)
    with said.to_a_pipe(), ExitStack() as stack, said.reading(upper):
        view = stack.enter_context(opening.owned(upper, lowers, asked.work, options))
        said.tell_notes(view)
        fds = stack.enter_context(opening.opened_directories(lowers, [Part.LOWER] * len(lowers)))
        before = stack.enter_context(opening.read_only(fds))
        count = size = 0
        for found in vacuum.needless(before, view):
            count, size = count + 1, size + found.size
            if asked.dry_run:
                print(one_line(f"{os.fsdecode(found.path)}  ({found.what})"))
            else:
                found.remove()
        would = "would be removed" if asked.dry_run else "removed"
        print(one_line(f"'{upper}': {count} names {would}, {said.size_of(size)}"))
    return ExitCode.OK
