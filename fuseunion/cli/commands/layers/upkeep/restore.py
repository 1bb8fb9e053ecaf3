"""fuseunion restore: an upper becomes what it was."""

from __future__ import annotations

from fuseunion.cli.commands.layers import said
from fuseunion.cli.parser import CommandParser
from fuseunion.errors import ExitCode, UserError, one_line
from fuseunion.offline.upkeep.points import place, restoring

HELP = """\
Usage: fuseunion restore UPPER NAME [--work DIR]

Lets the upper directory UPPER, which must not be mounted, be what it was when the snapshot was made. What was changed
since is lost; make a snapshot of it first if it is worth one. The snapshot stays. When the command is cut off, UPPER
cannot be mounted until it is given again.

Options:
  --work DIR     the work directory of UPPER, when that is not the default one
  -h, --help     print this help

Examples:
  fuseunion restore upper before-the-upgrade
"""


def main(arguments: list[str]) -> int:
    """Restore one snapshot.

    Raises:
        UserError: USAGE; LAYERS where there is none; BUSY where the upper is mounted; FAILURE where the system refuses.
    """
    parser = CommandParser("restore", HELP)
    parser.value("--work")
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) != 2:
        raise UserError("give the upper directory and the name of a snapshot; see fuseunion restore --help")
    upper, name = asked.operands
    with said.reading(upper, into=place.path_of(upper)), place.place(upper) as there:
        if there is None:
            raise UserError(f"'{upper}' has no snapshots", ExitCode.LAYERS)
        restoring.restore(there, name, asked.work)
    print(one_line(f"'{upper}' is as in snapshot '{name}'"))
    return ExitCode.OK
