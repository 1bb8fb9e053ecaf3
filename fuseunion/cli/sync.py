"""`fuseunion sync MERGED`: write what was changed in a ranch to its UPPER, without taking it down."""

from __future__ import annotations

import os

from fuseunion import mountinfo, syscalls
from fuseunion.cli.progress import Progress
from fuseunion.cli.takedown import ranch_at
from fuseunion.engines.fuse import mount
from fuseunion.engines.kernel import is_ours
from fuseunion.engines.ranch import corral
from fuseunion.errors import ExitCode, UserError

HELP = """\
Usage: fuseunion sync MERGED

Collects what was changed in a ranch (a tree of links) into its UPPER; the ranch stays, and what it shows does not
change. Files that are being written to are collected as they are. A mount of the other engines has everything in UPPER
already; there this writes it to disk, like sync -f.

Options:
  -h, --help   print this help

Example:
  fuseunion sync ~/merged
"""


def main(arguments: list[str]) -> int:
    """Collect one ranch.

    Raises:
        UserError: USAGE, LAYERS.
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
    entry = mountinfo.mount_at(os.path.realpath(given))
    if entry is not None and (entry.fstype == mount.TYPE or is_ours(entry)):
        fd = os.open(given, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(fd)
        finally:
            os.close(fd)
        return ExitCode.OK
    with ranch_at(given) as ranch, Progress("collected") as progress:
        corral.sync(ranch, progress)
    return ExitCode.OK
