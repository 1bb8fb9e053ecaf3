"""`fuseunion sync MERGED`: everything that was changed is in UPPER and on disk, and the mount or ranch goes on."""

from __future__ import annotations

import os

from fuseunion.cli.progress import Progress
from fuseunion.cli.takedown import ranch_at
from fuseunion.engines.fuse import mount_point, questions
from fuseunion.engines.kernel import overlay
from fuseunion.engines.ranch import corral
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import mountinfo

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
    if "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
        return ExitCode.OK
    unknown = [argument for argument in arguments if argument.startswith("-")]
    if unknown:
        raise UserError(f"unknown option '{unknown[0]}'; see fuseunion sync --help")
    if len(arguments) != 1:
        raise UserError("give one directory: fuseunion sync MERGED")
    (given,) = arguments
    path = os.path.realpath(given)
    entry = mountinfo.mount_at(path)
    try:
        if entry is not None and entry.fstype == mount_point.TYPE:
            questions.write_out(path, questions.SYNC)
            return ExitCode.OK
        if entry is not None and overlay.is_ours(entry):
            overlay.write_out(path, entry)
            return ExitCode.OK
    except OSError as error:
        raise UserError(f"'{given}' cannot be written to disk: {error.strerror}", ExitCode.FAILURE) from None
    with ranch_at(given) as ranch, Progress("collected") as progress:
        corral.sync(ranch, progress)
    return ExitCode.OK
