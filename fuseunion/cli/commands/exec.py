"""`fuseunion exec LOWER [UPPER] [-- COMMAND...]`: run a command in a union, without root."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from fuseunion.cli import arguments as mount_arguments
from fuseunion.cli.parser import Arguments, CommandParser
from fuseunion.contained.wishes import (
    Net,
    Wishes,
    check_engine,
    parse_bind,
    parse_hostname,
    parse_setting,
    parse_user,
)
from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting.options.values import parse_choice

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from fuseunion.engines.engine import Report
    from fuseunion.mounting.options import Options

HELP = """\
Usage: fuseunion exec [options] LOWER[:LOWER...] [UPPER] [-- COMMAND...]
       fuseunion exec --here [--at DIR] [options] LOWER[:LOWER...] [UPPER] [-- COMMAND...]

Runs COMMAND, or else a shell, with the union as its root directory and as root of it, without being root: in a user
namespace with all the subordinate ids of the user (/etc/subuid), or else with one. What it changes is in UPPER; without
UPPER it is forgotten. Returns the exit status of COMMAND, 128 and more for one that a signal ended, when nothing of it
is left and UPPER is in order. Every option of a mount may be given too (fuseunion --help).

Options:
  --overlay PATH[:ro]   one more layer on LOWER, in Apptainer's way: a directory that holds upper/ and work/, an ext
                        image that does, or a squashfs image; repeatable, the last on top, one at most is written
  --writable-tmpfs      without an UPPER: changes go to memory and are forgotten (so it is without this word, too)
  --bind SRC[:DST[:ro]]
                        show SRC of this machine inside, at DST; made in the merged view if it is missing; repeatable
  --workdir DIR         where the command begins (default: /)
  --env NAME=VALUE      set a variable; repeatable. PATH, HOME, USER, LOGNAME and SHELL are set, the others passed on
  --user UID[:GID]      who the command is inside (default: root)
  --pid                 its own process ids: it sees no others, and nothing of it can survive
  --net NETWORK         host (default), or none: a loopback device and nothing else
  --hostname NAME       a name of the host of its own
  --here                no new root: the union lies over LOWER (the first), and everything else is as it is
  --at DIR              the same, but over DIR
  -h, --help            print this help

Examples:
  fuseunion exec debian changes                              a shell in the tree 'debian'
  fuseunion exec debian changes -- apt-get install -y gcc    what it installs is in 'changes'
  fuseunion exec --overlay env.sqfs --overlay my.img base.sqfs     images: read, written, and the tree below them
  fuseunion exec / changes -- apt-get install -y gcc         the same, over the machine's own tree
  fuseunion exec --bind ~/src:/src debian -- make -C /src    nothing is kept but what was bound
  fuseunion exec --here . -- make test                       tests over a checkout, which stays as it is
"""


def main(arguments: list[str]) -> int:
    """Run a command in a union.

    Raises:
        UserError: with the exit status, where there is nothing to pass on.
    """
    parser = CommandParser("exec", HELP)
    for flag in ("--writable-tmpfs", "--pid", "--here"):
        parser.flag(flag)
    for name in ("--workdir", "--user", "--net", "--hostname", "--at"):
        parser.value(name)
    for name in ("--bind", "--env", "--overlay"):
        parser.values(name)
    known = parser.parse_known(arguments)
    if known is None:
        return ExitCode.OK
    given, rest = known
    end = rest.index("--") if "--" in rest else len(rest)
    options = _options(rest[:end], tuple(given.overlay), tmpfs=given.writable_tmpfs)
    wishes = _wishes(given, tuple(rest[end + 1 :]), options)

    from fuseunion.contained import supervise

    return supervise.run(options, wishes, _progress, _say)


def _options(rest: list[str], overlays: tuple[str, ...], *, tmpfs: bool) -> Options:
    """The options of the union; its target is a placeholder.

    Args:
        rest: what is not exec's own.
        overlays: those of --overlay.
        tmpfs: what is changed is to be forgotten.

    Raises:
        UserError: USAGE.
    """
    operands = mount_arguments.operands(rest)
    if not 1 <= len(operands) <= 2:
        raise UserError("give LOWER, or LOWER and UPPER: fuseunion exec LOWER [UPPER] [-- COMMAND...]")
    if tmpfs and len(operands) == 2:
        raise UserError(f"--writable-tmpfs forgets what is changed, and '{operands[1]}' is given to keep it")
    try:
        is_kept = len(operands) == 2 or "--ephemeral" in rest or mount_arguments.is_read_only(rest)
        throw_away = [] if is_kept else ["--ephemeral"]
        options = mount_arguments.parse([*throw_away, *rest, os.path.sep])
    except UserError as error:
        raise UserError(error.message.replace("fuseunion --help", "fuseunion exec --help"), error.exit_code) from None
    if options.foreground or options.trace:
        raise UserError("-f and -d have no meaning for exec, which ends with its command; use --log-file")
    check_engine(options)
    if not overlays:
        return options
    from fuseunion.mounting.sources.overlays import applied

    over = applied(options, overlays)
    if tmpfs and over.upper is not None:
        raise UserError(f"--writable-tmpfs forgets what is changed, and '{over.upper}' is given to keep it")
    return over


def _wishes(given: Arguments, command: tuple[str, ...], options: Options) -> Wishes:
    place = None
    if given.here or given.at is not None:
        for name, value in (("--bind", given.bind), ("--user", given.user), ("--pid", given.pid)):
            if value:
                raise UserError(f"{name} has no meaning with --here, where everything but the union is as it is")
        place = os.path.realpath(given.at if given.at is not None else options.lowers[0])
    return Wishes(
        command=command,
        binds=tuple(map(parse_bind, given.bind)),
        workdir=given.workdir,
        environment=tuple(map(parse_setting, given.env)),
        user=None if given.user is None else parse_user(given.user),
        own_pids=given.pid,
        net=Net.HOST if given.net is None else parse_choice(Net, given.net, "--net"),
        hostname=None if given.hostname is None else parse_hostname(given.hostname),
        place=place,
    )


def _progress(what: str) -> AbstractContextManager[Report]:
    from fuseunion.cli.progress import Progress

    return Progress(what)


def _say(line: str) -> None:
    sys.stderr.write(f"fuseunion: {line}\n")
