"""`fuseunion commit LOWER[:LOWER...] UPPER NEWLOWER`: what a mount shows, as one plain directory."""

from __future__ import annotations

import os
from contextlib import ExitStack

from fuseunion.cli.commands.layers import said
from fuseunion.cli.parser import CommandParser
from fuseunion.cli.progress import Progress
from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting import log
from fuseunion.mounting.checks.placement import Part, Survey
from fuseunion.mounting.options import Options, XattrPermissions
from fuseunion.mounting.options.values import parse_lowers
from fuseunion.offline.layers import filling, opening, reader
from fuseunion.offline.layers.copying import Copier

HELP = """\
Usage: fuseunion commit LOWER[:LOWER...] UPPER NEWLOWER [--fakeroot] [--work DIR]

Makes the new directory NEWLOWER, with what a mount of LOWER and UPPER shows: a plain tree that can be the lower
directory of other mounts. UPPER must not be mounted. Blocks are shared with LOWER and UPPER where the filesystem can;
none of them changes.

Options:
  --fakeroot   store owners, modes and devices beside the files, as the same option of the mount does
  --work DIR   the work directory of UPPER, when that is not the default one
  -h, --help   print this help

Example:
  fuseunion commit base upper base-2
"""


def main(arguments: list[str]) -> int:
    """Make one merged tree.

    Raises:
        UserError: USAGE; LAYERS; BUSY where UPPER is mounted; FAILURE where something cannot be read or written.
    """
    parser = CommandParser("commit", HELP)
    parser.flag("--fakeroot")
    parser.value("--work")
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) != 3:
        raise UserError("give three directories: fuseunion commit LOWER[:LOWER...] UPPER NEWLOWER")
    lowers, (upper, new) = parse_lowers(asked.operands[0]), asked.operands[1:]
    _refuse_inside(new, [*lowers, upper])
    stored = XattrPermissions.CONTAINERS if asked.fakeroot else XattrPermissions.OFF
    with said.reading(upper, lowers, into=new), ExitStack() as stack:
        view = stack.enter_context(opening.readable(upper, lowers, asked.work))
        said.tell_notes(view)
        done = stack.enter_context(Progress("commit"))
        options = Options(opening.NOWHERE, (), xattr_permissions=stored)
        with filling.filled(new, hides=False, adds=False, options=options) as builder:
            copier = Copier(view.union, builder)
            for entry in reader.merged(view.union):
                copier.copy(entry)
                done(copier.count)
        for path in copier.left_out:
            log.tell(f"warning: '{os.fsdecode(path)}' is a device, which cannot be made here; left out")
        said.tell_lost(builder.lost)
    print(f"'{new}' holds {copier.count} objects")
    return ExitCode.OK


def _refuse_inside(new: str, layers: list[str]) -> None:
    survey = Survey()
    place = survey.place(Part.LOWER, new)
    for path in layers:
        other = survey.place(Part.LOWER, path)
        if place.inside(other) or other.inside(place):
            raise UserError(f"'{new}' lies in the layer '{path}', or holds it; choose another place", ExitCode.LAYERS)
