"""`fuseunion add-lower MERGED DIR`: one more lower on top of the others, without unmounting.

The command opens DIR and gives the daemon the descriptor: the daemon may be in another mount namespace, and looks
nothing up by a path. Where DIR lies is judged here, where the paths are seen.
"""

from __future__ import annotations

import os
from typing import Protocol

from fuseunion.cli.commands.live.lowers.looked_up import look_again, refuse_closed, root_of
from fuseunion.cli.commands.live.reaching import reach
from fuseunion.cli.parser import CommandParser
from fuseunion.engines.status import Status
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import mountinfo
from fuseunion.linux.runtime.conversation import RefusedError
from fuseunion.mounting.checks import placement
from fuseunion.mounting.checks.placement import Part, Place, Survey

HELP = """\
Usage: fuseunion add-lower MERGED DIR

Adds the directory DIR to a mount that is in use, on top of its lowers and below UPPER. From then on the mount shows
what a new one with DIR:LOWER... would show. What was changed in the mount stays, and who has a file open keeps it. DIR
is never written to. Mounts through FUSE only.

Options:
  -h, --help   print this help

Examples:
  fuseunion add-lower ~/merged ~/patch
"""


def main(arguments: list[str]) -> int:
    """Add a lower.

    Raises:
        UserError: USAGE; LAYERS when nothing of ours is at MERGED, or DIR cannot be a lower of it; BUSY where something
            is mounted in MERGED; UNAVAILABLE where nobody can be asked, or the mount is not seen from here; FAILURE
            when the daemon has ended, or for directories that this user may not enter.
    """
    parser = CommandParser("add-lower", HELP)
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) != 2:
        raise UserError("give a mounted directory and the lower to add: fuseunion add-lower MERGED DIR")
    given, added = asked.operands
    status, conversation = reach(given, "its lowers are those that it was made with; unmount, and mount again with it")
    with conversation:
        root = root_of(status, given)
        try:
            refuse_another_user(conversation, given)
            _refuse_mounts_within(status, given)
            place = _place(status, added)
            fd = placement.open_directory(place)
            try:
                conversation.send("add-lower", fd, path=place.path)
            finally:
                os.close(fd)
            word, allowed = look_again(root, conversation)
            while word == "ready":
                conversation.send("add-lower-now")
                word, now = look_again(root, conversation)
                allowed &= now
        except RefusedError as refusal:
            raise UserError(f"'{added}' cannot be added to '{given}': {refusal.message}", ExitCode.LAYERS) from None
        finally:
            os.close(root)
    if not allowed:
        raise refuse_closed(given)
    return ExitCode.OK


class Daemon(Protocol):
    """Who is asked."""

    @property
    def daemon_uid(self) -> int:
        """Whose it is."""


def refuse_another_user(daemon: Daemon, given: str) -> None:
    """Nobody gives another user's process a directory that the user may not reach.

    Args:
        given: the path of the mount as the user wrote it.

    Raises:
        UserError: UNAVAILABLE.
    """
    uid = daemon.daemon_uid
    if uid != os.geteuid():
        raise UserError(
            f"'{given}' was mounted by another user ({uid}); only that user can add a lower to it",
            ExitCode.UNAVAILABLE,
        )


def _refuse_mounts_within(status: Status, given: str) -> None:
    """What is mounted over a name goes when the name leads elsewhere (fs/dcache.c d_invalidate)."""
    for mount in mountinfo.mounts():
        if mount.target.startswith(f"{status.merged}/"):
            raise UserError(
                f"'{mount.target}' is mounted in '{given}', and would go where its name changes; unmount it first",
                ExitCode.BUSY,
            )


def _place(status: Status, given: str) -> Place:
    """Where the directory lies.

    Raises:
        UserError: LAYERS for a place where a lower of this mount cannot be.
    """
    survey = Survey()
    place = survey.place(Part.LOWER, given)
    if place.is_file:
        raise UserError(
            f"'{given}' is a file; an image can only be a lower from the beginning: unmount, and mount again with it",
            ExitCode.LAYERS,
        )
    merged = survey.place(Part.MERGED, status.merged)
    upper, work = (
        survey.place(part, path) if path is not None else None
        for part, path in ((Part.UPPER, status.upper), (Part.WORK, status.work))
    )
    if place.inside(merged) or merged.inside(place):
        raise UserError(
            f"lower directory '{given}' and the merged directory '{status.merged}' lie in one another, as they can "
            "only from the beginning; choose another",
            ExitCode.LAYERS,
        )
    device = mountinfo.mount_at(status.merged)
    for mount in mountinfo.mounts():
        if device is not None and mount.device == device.device and mount.target.startswith(f"{place.path}/"):
            raise UserError(
                f"'{mount.target}' in the lower directory '{given}' shows the mount itself; unmount it first",
                ExitCode.LAYERS,
            )
    placement.check([place], upper, work, merged)
    return place
