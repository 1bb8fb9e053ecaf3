"""`fuseunion umount MERGED...`: write everything out, unmount, and wait until it is done.

When it returns 0, everything is on disk (but of a volatile mount), and the upper may be mounted, copied or removed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fuseunion.cli.main import say
from fuseunion.cli.parser import CommandParser
from fuseunion.cli.progress import Progress
from fuseunion.engines import registry
from fuseunion.engines.live import BusyError, LiveMount
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import mountinfo

if TYPE_CHECKING:
    from fuseunion.linux.proc.holders import Holder

HELP = """\
Usage: fuseunion umount [--lazy] [--discard] MERGED...

Writes everything to disk, unmounts each MERGED in turn and waits until its daemon has gone; a volatile mount is not
written to disk. If a mount is busy, says which processes use it and exits with status 4. A mount whose daemon has died
("Transport endpoint is not connected") is removed.

Options:
  -l, --lazy   take the mount out of the tree at once; those who use it may go on, and nothing is waited for
  --discard    of a ranch (a tree of links): throw away what was changed there instead of writing it to UPPER
  -h, --help   print this help

Example:
  fuseunion umount ~/merged
"""


def main(arguments: list[str]) -> int:
    """Unmount one mount after the other; one that fails keeps none of the others.

    Returns:
        OK, or the code of the first that failed when there were several: each has said why.
    Raises:
        UserError: USAGE; BUSY with the holders; LAYERS where nothing of ours is mounted; FAILURE where it cannot be
            unmounted.
    """
    parser = CommandParser("umount", HELP)
    parser.flag("-l", "--lazy")
    parser.flag("--discard")
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if not asked.operands:
        raise UserError("give a mounted directory: fuseunion umount MERGED")
    if len(asked.operands) == 1:
        _unmount(asked.operands[0], lazy=asked.lazy, discard=asked.discard)
        return ExitCode.OK
    code = ExitCode.OK
    for given in asked.operands:
        try:
            _unmount(given, lazy=asked.lazy, discard=asked.discard)
        except UserError as error:
            say(error.message)
            code = code or error.exit_code
        except OSError as error:
            say(f"'{given}': {error.strerror or error}")
            code = code or ExitCode.FAILURE
    return code


def _unmount(given: str, *, lazy: bool, discard: bool) -> None:
    """Unmount what is at one path. Raises as `main`."""
    found = registry.find(given)
    if discard and (found is None or not found[0].can_discard):
        raise UserError(
            f"--discard: '{given}' is no ranch; what was written there is in its UPPER already", ExitCode.LAYERS
        )
    if found is None:
        raise _nothing_of_ours(given)
    engine, live = found
    try:
        engine.stop(live, Progress, lazy=lazy, discard=discard)
    except BusyError:
        raise _busy(live, engine.holders(live)) from None


def _busy(live: LiveMount, holders: list[Holder]) -> UserError:
    below = [mount.target for mount in mountinfo.mounts() if mount.target.startswith(f"{live.path}/")]
    reasons = [f"mounted below: {', '.join(below)}"] if below else []
    if holders:
        reasons.append(f"used by {', '.join(map(str, holders))}")
    why = "; ".join(reasons) or "used by a process that you may not see"
    return UserError(f"'{live.given}' is busy: {why}; end that and try again, or use --lazy", ExitCode.BUSY)


def _nothing_of_ours(given: str) -> UserError:
    entry = mountinfo.mount_at(os.path.realpath(given))
    if entry is None and not os.path.lexists(given):
        why = "does not exist; see the mounted ones with: fuseunion status"
    elif entry is None:
        why = "is not a mount point; see the mounted ones with: fuseunion status"
    else:
        why = f"is mounted by '{entry.fstype}', not by fuseunion; use umount"
    return UserError(f"'{given}' {why}", ExitCode.LAYERS)
