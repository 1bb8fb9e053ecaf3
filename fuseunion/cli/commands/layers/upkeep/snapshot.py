"""fuseunion snapshot: a point in time of an upper."""

from __future__ import annotations

from fuseunion.cli.commands.layers import said
from fuseunion.cli.parser import CommandParser
from fuseunion.errors import ExitCode, UserError, one_line
from fuseunion.offline.upkeep.points import making, place

HELP = """\
Usage: fuseunion snapshot UPPER NAME [--work DIR]

Keeps the upper directory UPPER as it is now, under a name, beside it. UPPER may be mounted: then the mount changes
nothing for the moment in which what has just been written is copied. Data is shared where the filesystem can (btrfs,
xfs, bcachefs); else what has not changed since the snapshot before is shared with that one, and the rest is copied.

Options:
  --work DIR     the work directory of UPPER, when that is not the default one
  -h, --help     print this help

Examples:
  fuseunion snapshot upper before-the-upgrade
"""


def main(arguments: list[str]) -> int:
    """Make one snapshot.

    Raises:
        UserError: USAGE; LAYERS; BUSY where the upper is used by another program, or changes too fast; FAILURE where
            the system refuses.
    """
    parser = CommandParser("snapshot", HELP)
    parser.value("--work")
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) != 2:
        raise UserError("give the upper directory and a name; see fuseunion snapshot --help")
    upper, name = asked.operands
    place.check_name(name)
    with said.reading(upper, into=place.path_of(upper)), place.place(upper, make=True) as there:
        assert there is not None
        made = making.make(there, name, asked.work)
    sizes = f"{said.size_of(made.copied)} copied, {said.size_of(made.linked)} shared"
    print(one_line(f"'{upper}': snapshot '{name}', {sizes}"))
    return ExitCode.OK
