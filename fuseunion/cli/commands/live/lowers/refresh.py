"""`fuseunion refresh MERGED [PATH...]`: a lower was changed underneath; forget what was remembered of it.

The daemon forgets what it remembers, and tells the kernel which attributes and listings to drop; names and pages are
dropped from here (looked_up.py).
"""

from __future__ import annotations

import os

from fuseunion.cli.commands.live.inside import path_in
from fuseunion.cli.commands.live.lowers.looked_up import look_again, refuse_closed, root_of
from fuseunion.cli.commands.live.reaching import reach
from fuseunion.cli.parser import CommandParser
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux.runtime.conversation import RefusedError

HELP = """\
Usage: fuseunion refresh MERGED [PATH...]

Forgets what a mount remembers of its lowers, after one of them was changed underneath: names, attributes and data, at
each PATH and beneath it, or everywhere. What was changed in the mount stays, and so does what is open. Mounts through
FUSE only.

A PATH that leads into MERGED is that path; any other is one from the root of the mount.

Options:
  -h, --help   print this help

Examples:
  fuseunion refresh ~/merged
  fuseunion refresh ~/merged ~/merged/usr/lib
"""


def main(arguments: list[str]) -> int:
    """Have a mount forget.

    Raises:
        UserError: USAGE; LAYERS when nothing of ours is at MERGED, or a path leads out of it; UNAVAILABLE where nobody
            can be asked, or the mount is not seen from here; FAILURE for directories that this user may not enter.
    """
    parser = CommandParser("refresh", HELP)
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if not asked.operands:
        raise UserError("give a mounted directory: fuseunion refresh MERGED [PATH...]")
    given, *paths = asked.operands
    status, conversation = reach(given)
    with conversation:
        root = root_of(status, given)
        try:
            conversation.send("refresh", path=[path_in(status, path) for path in paths] or [""])
            _, allowed = look_again(root, conversation)
        except RefusedError as refusal:
            raise UserError(f"'{given}' cannot be refreshed: {refusal.message}", ExitCode.FAILURE) from None
        finally:
            os.close(root)
    if not allowed:
        raise refuse_closed(given)
    return ExitCode.OK
