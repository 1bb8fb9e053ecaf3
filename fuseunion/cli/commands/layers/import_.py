"""`fuseunion import LAYER... DIR`: layers of container images, or whole images, as a lower directory or an upper."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack

from fuseunion.cli.commands.layers import said
from fuseunion.cli.parser import Arguments, CommandParser
from fuseunion.cli.progress import Progress
from fuseunion.core.ids.identity import IdMap
from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting import log
from fuseunion.mounting.options import Options, XattrPermissions
from fuseunion.mounting.options.values import parse_id_map
from fuseunion.offline.archive import saved
from fuseunion.offline.archive.unpack import Limits, Unpacker
from fuseunion.offline.layers import filling, opening

HELP = """\
Usage: fuseunion import LAYER... DIR [--upper] [--add] [--limit SIZE] [--max-entries N] [--fakeroot] [--uid-map D:S:N]
                        [--gid-map D:S:N] [--work DIR]

Brings layers of a container image, the lowest first, into the directory DIR: a plain tree to use as LOWER, or with
--upper an upper directory. LAYER is a tar archive, also compressed by gzip or zstd, an image that podman save, docker
save or skopeo has written, or `-` for the standard input. Nothing outside DIR is touched, whatever is in the archive;
what fails is undone.

Options:
  --upper           DIR becomes an upper: what the layers delete is hidden in the lower directories under it
  --add             DIR need not be empty
  --limit SIZE      refuse more than SIZE of data: bytes, or with k, m, g, t
  --max-entries N   refuse more than N members
  --fakeroot        store owners, modes and devices beside the files, as the same option of the mount does
  --uid-map D:S:N   the users S, S+1, ... (N of them) in the archive become D, D+1, ... on disk; repeatable
  --gid-map D:S:N   the same for groups; repeatable
  --work DIR        the work directory, when not the default one; on the filesystem of DIR
  -h, --help        print this help

Examples:
  podman save debian -o debian.tar && fuseunion import debian.tar base
  fuseunion import --upper layer.tar.gz upper
"""

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def main(arguments: list[str]) -> int:
    """Bring layers into one directory.

    Raises:
        UserError: USAGE; LAYERS for an archive or a directory that is refused; BUSY; FAILURE where the system refuses.
    """
    parser = CommandParser("import", HELP)
    for name in ("--upper", "--add", "--fakeroot"):
        parser.flag(name)
    for name in ("--limit", "--max-entries", "--work"):
        parser.value(name)
    for name in ("--uid-map", "--gid-map"):
        parser.values(name)
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) < 2:
        raise UserError("give at least one archive, and the directory for it: fuseunion import layer.tar DIR")
    *archives, directory = asked.operands
    limits = Limits(_bytes(asked.limit), _number(asked.max_entries))
    options, uids, gids = _ids(asked)
    with said.reading(directory), ExitStack() as stack:
        # Looked at before anything is made.
        layers = [(path, layer) for path in archives for layer in _layers_in(path)]
        if asked.add:
            said.refuse_shown(directory)
        done = stack.enter_context(Progress("import"))
        with filling.filled(directory, hides=asked.upper, adds=asked.add, work=asked.work, options=options) as builder:
            unpacker = Unpacker(builder, limits, uids, gids, done)
            for path, layer in layers:
                with saved.opened(path, layer) as source:
                    unpacker.add(source, layer.label)
        for line in unpacker.says_left_out:
            log.tell(f"warning: {line}")
        said.tell_lost(builder.lost)
    entries = "1 entry" if unpacker.entries == 1 else f"{unpacker.entries} entries"
    print(f"imported {entries} of {len(layers)} {'layer' if len(layers) == 1 else 'layers'}")
    return ExitCode.OK


def _layers_in(path: str) -> list[saved.Layer]:
    if path != saved.STDIN and os.path.isdir(path):
        raise UserError(f"'{path}' is a directory, no archive; the directory to fill is named last", ExitCode.LAYERS)
    try:
        return saved.layers_in(path)
    except FileNotFoundError:
        raise UserError(f"archive '{path}' does not exist; check the path", ExitCode.LAYERS) from None


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,15})([kmgt]?)", text, re.ASCII | re.IGNORECASE)
    if found is None:
        raise UserError(f"--limit {text}: expected a number of bytes, or one with k, m, g or t, such as 4g")
    return int(found[1]) << _UNITS[found[2].lower()]


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,30}", text, re.ASCII) or int(text) < 1:
        raise UserError(f"--max-entries {text}: expected a number, 1 or more")
    return int(text)


def _ids(asked: Arguments) -> tuple[Options, IdMap, IdMap]:
    uids = tuple(triple for text in asked.uid_map for triple in parse_id_map(text, "--uid-map"))
    gids = tuple(triple for text in asked.gid_map for triple in parse_id_map(text, "--gid-map"))
    stored = XattrPermissions.CONTAINERS if asked.fakeroot else XattrPermissions.OFF
    options = Options(opening.NOWHERE, (), uid_map=uids, gid_map=gids, xattr_permissions=stored)
    try:
        return options, IdMap(uids, "uid"), IdMap(gids, "gid")
    except ValueError as error:
        raise UserError(str(error)) from None
