"""fuseunion snapshots: which points in time of an upper there are, and removing some."""

from __future__ import annotations

import json
import time

from fuseunion.cli.commands.layers import said
from fuseunion.cli.parser import CommandParser
from fuseunion.errors import ExitCode, UserError, one_line
from fuseunion.offline.upkeep.points import place

HELP = """\
Usage: fuseunion snapshots UPPER [--json]
       fuseunion snapshots UPPER --remove NAME...

Lists the snapshots of the upper directory UPPER, the oldest first, or removes some.

Options:
  --remove NAME  remove this one; repeatable
  --json         for programs
  -h, --help     print this help

Examples:
  fuseunion snapshots upper
  fuseunion snapshots upper --remove before-the-upgrade
"""


def main(arguments: list[str]) -> int:
    """List or remove snapshots.

    Raises:
        UserError: USAGE; LAYERS where there is none of a name; BUSY; FAILURE where the system refuses.
    """
    parser = CommandParser("snapshots", HELP)
    parser.flag("--json")
    parser.values("--remove")
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) != 1:
        raise UserError("give one directory; see fuseunion snapshots --help")
    (upper,) = asked.operands
    with said.to_a_pipe(), said.reading(upper), place.place(upper) as there:
        if asked.remove:
            if there is None:
                raise UserError(f"'{upper}' has no snapshots", ExitCode.LAYERS)
            for name in asked.remove:
                place.remove(there, name)
            return ExitCode.OK
        found = place.listed(there) if there is not None else []
    if asked.json:
        print(
            json.dumps([{"name": each.name, "taken_ns": each.taken_ns, "size": each.size} for each in found], indent=2)
        )
        return ExitCode.OK
    for each in found:
        taken = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.taken_ns / 1e9))
        print(one_line(f"{taken}  {said.size_of(each.size):>10}  {each.name}"))
    return ExitCode.OK
