"""fuseunion convert: an upper in the form of another program."""

from __future__ import annotations

from fuseunion.cli.commands.layers.upkeep.flatten import add_layers, run
from fuseunion.cli.parser import CommandParser
from fuseunion.errors import ExitCode, UserError
from fuseunion.offline.upkeep.flattening import flatten
from fuseunion.offline.upkeep.flattening.forms import Form

HELP = """\
Usage: fuseunion convert UPPER --to kernel|fuse-overlayfs|oci [--userxattr] [--lower LOWER[:LOWER...]] [--work DIR]

Gives the marks of the upper directory UPPER the form of one program. It is flattened first (fuseunion flatten --help).
The forms:

  kernel          whiteout devices, marks in trusted.overlay. (as root), in user.overlay. with --userxattr
  fuse-overlayfs  whiteout devices, opaque directories marked twice; stored owners stay
  oci             '.wh.' files and no other marks, as an image layer that was unpacked

Options:
  --to FORM                 the form
  --userxattr               with --to kernel: for a mount with the option userxattr, as in a user namespace
  --lower LOWER[:LOWER...]  the lower directories, topmost first; repeatable
  --work DIR                the work directory of UPPER, when that is not the default one
  -h, --help                print this help

Examples:
  fuseunion convert upper --to oci --lower base
  fuseunion convert upper --to kernel --userxattr --lower base
"""


def main(arguments: list[str]) -> int:
    """Convert one upper.

    Raises:
        UserError: USAGE; as flatten.
    """
    parser = CommandParser("convert", HELP)
    add_layers(parser)
    parser.flag("--userxattr")
    parser.value("--to")
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    run(asked, _form(asked.to, userxattr=asked.userxattr), "convert")
    return ExitCode.OK


def _form(name: str | None, *, userxattr: bool) -> Form:
    if userxattr and name != "kernel":
        raise UserError("--userxattr goes with --to kernel")
    if name == "kernel":
        if not userxattr and not flatten.may_set_trusted():
            raise UserError("marks in trusted.overlay. are for root; give --userxattr, or run it as root")
        return flatten.kernel(userxattr=userxattr)
    if name == "fuse-overlayfs":
        return flatten.fuse_overlayfs()
    if name == "oci":
        return flatten.oci()
    if name is None:
        raise UserError("say which form with --to: kernel, fuse-overlayfs or oci")
    raise UserError(f"--to {name}: expected kernel, fuse-overlayfs or oci")
