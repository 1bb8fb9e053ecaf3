"""fuseunion image: make, look at and change the files that layers are kept in.

One parser reads the options of all actions, so that there is one list of them; which of them an action has is said
here, and an option of another one is refused with its name.
"""

from __future__ import annotations

import importlib
import re
from typing import NamedTuple

from fuseunion.cli.parser import Arguments, CommandParser
from fuseunion.errors import ExitCode, UserError

HELP = """\
Usage: fuseunion image create | info | check | resize | chown | clone | ls | pack | unpack | squash
       fuseunion image create --size SIZE [--sparse] [--create-dir DIR...] [--fakeroot] [--inodes N]
                              [--profile PROFILE] [--type TYPE] FILE
       fuseunion image info [--json] FILE
       fuseunion image check [--dry-run | --repair] [--json] FILE
       fuseunion image resize FILE SIZE
       fuseunion image chown FILE --to OWNER [--keep-set-id] [--dry-run]
       fuseunion image clone [--sparse] FILE NEW
       fuseunion image ls [--long] FILE [PATH]
       fuseunion image pack [--size SIZE] [--type TYPE] [--work DIR] UPPER FILE
       fuseunion image unpack FILE UPPER
       fuseunion image squash [--work DIR] UPPER|MERGED FILE

Makes, looks at and changes images of filesystems: ext3 and ext4, with upper/ and work/ in them, as Apptainer has them
for --overlay; squashfs; and SIF, of which the overlay partition is meant. Nothing that exists is overwritten, an image
that is in use is left alone, and what is interrupted leaves nothing half-made.

create makes an empty image, or adds an overlay to a SIF that is neither signed nor encrypted. info says what it is and
how full. check runs e2fsck, which corrects what loses nothing. resize works on a copy; SIZE is 2G, +500M or -1G. chown
changes whose the files in it are. clone copies an image and shares its blocks where it can. ls lists PATH in it. pack
and unpack turn a directory into an image and back. squash freezes a directory, or what a mount shows, as squashfs.

Options:
  --size SIZE       of the image: a number with K, M, G or T
  --sparse          space is taken when it is used (create); blocks of zeros become holes (clone)
  --create-dir DIR  make this directory in the upper; repeatable
  --fakeroot        what is made belongs to root, for use with fakeroot
  --inodes N        how many files fit
  --profile PROFILE  small-files (an inode for 4 KiB) or large-files (one for 1 MiB)
  --type TYPE       ext3 (the default, which Apptainer takes) or ext4
  --json            print it for programs
  --repair          correct everything, also where something is lost
  --dry-run         say what would change, and change nothing
  --to OWNER        the new owner of everything: root, me, or UID:GID
  --keep-set-id     keep set-id bits and file capabilities
  -l, --long        with mode, links, owner, size and time
  --work DIR        the work directory of UPPER, when that is not the default one
  -h, --help        print this help

Examples:
  fuseunion image create --size 2G --sparse env.img
  fuseunion image resize env.img +500M
  fuseunion image chown env.img --to root
  fuseunion image pack upper env.img
  fuseunion image squash upper env.sqfs
"""


class _Action(NamedTuple):
    """One of them.

    Attributes:
        module: where it is; it has a function of its name: (Arguments) -> int.
        options: those that it has.
        operands: what has to be given, for the message.
        least, most: how many.
    """

    module: str
    options: frozenset[str]
    operands: str
    least: int
    most: int


def _action(module: str, options: str, operands: str, least: int, most: int | None = None) -> _Action:
    return _Action(f"fuseunion.cli.commands.image.{module}", frozenset(options.split()), operands, least, most or least)


ACTIONS = {
    "create": _action("making", "size sparse create_dir fakeroot inodes profile type", "FILE", 1),
    "info": _action("looking", "json", "FILE", 1),
    "check": _action("caring", "dry_run repair json", "FILE", 1),
    "resize": _action("caring", "", "FILE SIZE", 2),
    "chown": _action("caring", "to keep_set_id dry_run", "FILE", 1),
    "clone": _action("making", "sparse", "FILE NEW", 2),
    "ls": _action("looking", "long", "FILE [PATH]", 1, 2),
    "pack": _action("packing", "size type work", "UPPER FILE", 2),
    "unpack": _action("packing", "", "FILE UPPER", 2),
    "squash": _action("packing", "work", "UPPER|MERGED FILE", 2),
}

_OTHER_NAMES = {"cp": "clone", "copy": "clone", "list": "ls", "fsck": "check", "new": "create", "status": "info"}

_SMALLER = re.compile(r"-[0-9]+[KMGTkmgt]?")
"""A size to be taken away, which looks like an option."""


def main(arguments: list[str]) -> int:
    """Do one of the actions.

    Raises:
        UserError: USAGE; what the action raises.
        OSError: where the system refuses a file that the user has named.
    """
    parser = CommandParser("image", HELP)
    for name in ("--sparse", "--fakeroot", "--json", "--repair", "--dry-run", "--keep-set-id"):
        parser.flag(name)
    parser.flag("-l", "--long")
    parser.values("--create-dir")
    for name in ("--size", "--inodes", "--profile", "--type", "--to", "--work"):
        parser.value(name)
    known = parser.parse_known(arguments)
    if known is None:
        return ExitCode.OK
    asked, rest = known
    smaller = [each for each in rest if _SMALLER.fullmatch(each)] if "resize" in rest else []
    asked.operands = parser.operands([each for each in rest if each not in smaller]) + smaller
    action = _chosen(asked)
    from fuseunion.images.tools.programs import ended_by_signals

    name = asked.operands.pop(0)
    if not action.least <= len(asked.operands) <= action.most:
        raise UserError(f"give {action.operands}: fuseunion image {name} {action.operands}")
    with ended_by_signals():
        return int(getattr(importlib.import_module(action.module), name)(asked))


def _chosen(asked: Arguments) -> _Action:
    names = ", ".join(ACTIONS)
    if not asked.operands:
        raise UserError(f"say what to do with an image: {names}; see fuseunion image --help")
    name = asked.operands[0]
    if name not in ACTIONS:
        from fuseunion.cli import near

        meant = _OTHER_NAMES.get(name) or near.closest(name, ACTIONS)
        remedy = f"did you mean 'fuseunion image {meant}'?" if meant else f"there are {names}"
        raise UserError(f"unknown action '{name}'; {remedy}")
    action = ACTIONS[name]
    given = {key for key, value in vars(asked).items() if value and key not in ("operands", "help", "h")}
    for option in sorted(given - action.options):
        raise UserError(f"--{option.replace('_', '-')} is not for fuseunion image {name}; see fuseunion image --help")
    return action
