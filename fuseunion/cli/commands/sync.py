"""`fuseunion sync MERGED`: everything that was changed is in UPPER and on disk, and the mount or ranch goes on."""

from __future__ import annotations

from fuseunion.cli.parser import CommandParser
from fuseunion.cli.progress import Progress
from fuseunion.engines import registry
from fuseunion.errors import ExitCode, UserError

HELP = """\
Usage: fuseunion sync MERGED

Writes what was changed in a mount to disk, and returns when it is there; in a volatile mount as well. What was changed
in a ranch (a tree of links) is first collected into its UPPER; the ranch stays, and what it shows does not change.
Files that are being written to are taken as they are.

Options:
  -h, --help   print this help

Example:
  fuseunion sync ~/merged
"""


def main(arguments: list[str]) -> int:
    """Write out one mount, or collect one ranch.

    Raises:
        UserError: USAGE, LAYERS, FAILURE.
    """
    asked = CommandParser("sync", HELP).parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) != 1:
        raise UserError("give one directory: fuseunion sync MERGED")
    (given,) = asked.operands
    found = registry.find(given)
    if found is None:
        raise UserError(
            f"'{given}' is neither mounted by fuseunion nor a ranch; give the MERGED directory", ExitCode.LAYERS
        )
    engine, live = found
    engine.flush(live, Progress)
    return ExitCode.OK
