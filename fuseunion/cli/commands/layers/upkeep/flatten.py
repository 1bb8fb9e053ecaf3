"""fuseunion flatten, fuseunion convert: an upper in a form that others read."""

from __future__ import annotations

from fuseunion.cli.commands.layers import said
from fuseunion.cli.parser import Arguments, CommandParser
from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting.options import Options
from fuseunion.offline.layers import opening
from fuseunion.offline.upkeep.flattening import flatten
from fuseunion.offline.upkeep.flattening.forms import Form

HELP = """\
Usage: fuseunion flatten UPPER [--lower LOWER[:LOWER...]] [--work DIR]

Makes the upper directory UPPER, which must not be mounted, readable for every program: renamed
directories (redirect_dir) and files without data (metacopy) get what the lowers have, stored owners become real ones,
names in the hard-link index become hard links, whiteouts and opaque marks get the form of the kernel, which everybody
reads. It shows the same before and after. When it is cut off, give the same command again.

Options:
  --lower LOWER[:LOWER...]  the lower directories, topmost first; repeatable. Needed where UPPER is not complete, and
                            where it has a hard-link index
  --work DIR                the work directory of UPPER, when that is not the default one
  -h, --help                print this help

Examples:
  fuseunion flatten upper --lower base
"""


def main(arguments: list[str]) -> int:
    """Flatten one upper.

    Raises:
        UserError: USAGE; BUSY where it is mounted; LAYERS where the lowers are needed; FAILURE where the
            system refuses.
    """
    parser = CommandParser("flatten", HELP)
    add_layers(parser)
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    run(asked, flatten.readable_by_all(), "flatten")
    return ExitCode.OK


def add_layers(parser: CommandParser) -> None:
    """Add the options that name layers."""
    parser.values("--lower")
    parser.value("--work")


def run(asked: Arguments, form: Form, command: str) -> None:
    """Bring one upper into a form, and say what was done.

    Raises:
        UserError: as `main`.
    """
    if len(asked.operands) != 1:
        raise UserError(f"give one directory; see fuseunion {command} --help")
    (upper,) = asked.operands
    lowers = said.lowers_of(asked.lower)
    options = Options(opening.NOWHERE, ())._replace(metacopy=True)
    with (
        said.reading(upper, lowers, into=upper),
        opening.owned(upper, lowers, asked.work, options, writes=True) as view,
    ):
        said.tell_notes(view)
        if view.alone and view.union.state.writable().links.groups():
            raise UserError(
                f"'{upper}' has a hard-link index, whose names only the lower directories tell; give them with --lower",
                ExitCode.LAYERS,
            )
        if form.devices and not view.union.state.writable().work.capabilities.whiteout_devices:
            raise UserError(
                f"the filesystem of '{upper}' takes no whiteout devices from you; use convert --to oci",
                ExitCode.UNAVAILABLE,
            )
        done = flatten.flatten(view, form)
    counts = (
        (done.filled, "files got their data"),
        (done.unfolded, "renamed directories became whole"),
        (done.linked, "names became hard links"),
        (done.owned, "objects got their real owner"),
        (done.rewritten, "marks got another form"),
    )
    print(f"'{upper}': {', '.join(f'{count} {what}' for count, what in counts if count) or 'nothing to do'}")
