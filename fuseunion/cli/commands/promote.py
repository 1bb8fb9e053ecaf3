"""`fuseunion promote MERGED PATH...`: replace links of a ranch by private copies."""

from __future__ import annotations

from fuseunion.cli.parser import CommandParser
from fuseunion.cli.progress import Progress
from fuseunion.engines.ranch import promoter
from fuseunion.engines.ranch.ranch_engine import ranch_at
from fuseunion.errors import ExitCode, UserError

HELP = """\
Usage: fuseunion promote [--recursive] MERGED PATH...

In a ranch (a tree of links), replaces the link PATH by a private copy of the file that it stands for, so that it can
be written. Links to directories become real directories of links, on the way to PATH too. PATH is taken from MERGED,
or is an absolute path in it. Copies that nobody changes cost nothing when the ranch is taken down.

Options:
  -r, --recursive   everything in PATH as well
  -h, --help        print this help

Examples:
  fuseunion promote ~/merged etc/passwd
  fuseunion promote --recursive ~/merged usr/lib/python3
"""


def main(arguments: list[str]) -> int:
    """Promote some paths of one ranch.

    Raises:
        UserError: USAGE; LAYERS for a path that is not there.
    """
    parser = CommandParser("promote", HELP)
    parser.flag("-r", "--recursive")
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) < 2:
        raise UserError("give a ranch and what to copy: fuseunion promote MERGED PATH...")
    given, *paths = asked.operands
    with ranch_at(given) as ranch, Progress("copied") as progress:
        promoter.promote(ranch, paths, recursive=asked.recursive, report=progress)
    return ExitCode.OK
