"""`fuseunion export UPPER`: an upper as a layer of a container image, or as an image."""

from __future__ import annotations

import datetime
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from enum import Enum
from typing import BinaryIO, cast

from fuseunion.cli.commands.layers import said
from fuseunion.cli.parser import Arguments, CommandParser
from fuseunion.cli.progress import Progress
from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting import log
from fuseunion.mounting.assembly import identity
from fuseunion.mounting.checks.placement import Part, Survey
from fuseunion.mounting.options import Options
from fuseunion.mounting.options.values import parse_choice, parse_id_map
from fuseunion.offline.archive import export, image, output
from fuseunion.offline.archive.compression import Compression
from fuseunion.offline.archive.output import STDOUT, Blob
from fuseunion.offline.layers import opening
from fuseunion.offline.layers.links import complete_links

HELP = """\
Usage: fuseunion export UPPER [-o FILE] [--format oci|overlay|oci-archive] [--lower LOWER[:LOWER...]] [--name NAME:TAG]
                        [--mtime TIME] [--sparse] [--uid-map D:S:N] [--gid-map D:S:N] [--work DIR] [--json]

Writes the upper directory UPPER, which must not be mounted, as a layer of a container image, and says the digests of
it. The same tree always becomes the same bytes.

Options:
  -o, --output FILE         where to; a name that ends with .gz or .zst is compressed. Default, and with `-`: the
                            standard output
  --format FORMAT           oci (the default): a layer; overlay: an archive that tar(1) makes an upper of; oci-archive:
                            an image for podman load and skopeo, of UPPER and the lower directories that are given
  --lower LOWER[:LOWER...]  the lower directories, topmost first, for what UPPER only refers to; repeatable
  --name NAME:TAG           how the image of oci-archive is called. Default: the name of UPPER, and latest
  --mtime TIME              the time of everything: seconds since 1970, or a date as 2026-01-31 or 2026-01-31T12:00:00Z
  --sparse                  leave holes out, in a form that not every program understands
  --uid-map D:S:N           the users D, D+1, ... (N of them) on disk become S, S+1, ... in the archive; repeatable
  --gid-map D:S:N           the same for groups; repeatable
  --work DIR                the work directory of UPPER, when that is not the default one
  --json                    say the digests for programs
  -h, --help                print this help

Examples:
  fuseunion export upper -o layer.tar.gz
  fuseunion export upper --lower base --format oci-archive --name tools:1 -o tools.tar && podman load -i tools.tar
"""


class Format(Enum):
    """What is written."""

    OCI = "oci"
    OVERLAY = "overlay"
    OCI_ARCHIVE = "oci-archive"


def main(arguments: list[str]) -> int:
    """Write one layer, or image.

    Raises:
        UserError: USAGE; LAYERS; BUSY where UPPER is mounted; FAILURE where something cannot be read or written.
    """
    parser = CommandParser("export", HELP)
    parser.value("-o", "--output")
    for name in ("--format", "--mtime", "--name", "--work"):
        parser.value(name)
    for name in ("--lower", "--uid-map", "--gid-map"):
        parser.values(name)
    parser.flag("--sparse")
    parser.flag("--json")
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) != 1:
        raise UserError("give one upper directory: fuseunion export UPPER -o layer.tar.gz")
    chosen = Format.OCI if asked.format is None else parse_choice(Format, asked.format, "--format")
    if asked.name is not None and chosen is not Format.OCI_ARCHIVE:
        raise UserError("--name is for --format oci-archive: a layer has no name")
    style = export.Style(chosen is Format.OVERLAY, _time(asked.mtime), asked.sparse)
    options = _options(asked)
    path = asked.output or STDOUT
    _refuse_inside(path, [asked.operands[0], *said.lowers_of(asked.lower)])
    written = "the standard output" if path == STDOUT else path
    with said.reading(asked.operands[0], said.lowers_of(asked.lower), into=written):
        if chosen is Format.OCI_ARCHIVE:
            facts = _write_image(asked, path, style, options)
        else:
            facts = _write_layer(asked, path, style, options)
    _say(facts, asked.operands[0] if path == STDOUT else path, as_json=asked.json, to_stderr=path == STDOUT)
    return ExitCode.OK


def _refuse_inside(path: str, layers: list[str]) -> None:
    """Refuse to write an archive into what goes into it.

    Raises:
        UserError: LAYERS.
    """
    if path == STDOUT:
        return
    survey = Survey()
    target = survey.place(Part.UPPER, os.path.dirname(os.path.realpath(path)))
    for layer in layers:
        if target.inside(survey.place(Part.UPPER, layer)):
            raise UserError(f"'{path}' lies in '{layer}', which goes into it; choose another place", ExitCode.LAYERS)


def _options(asked: Arguments) -> Options:
    uids = tuple(triple for text in asked.uid_map for triple in parse_id_map(text, "--uid-map"))
    gids = tuple(triple for text in asked.gid_map for triple in parse_id_map(text, "--gid-map"))
    options = Options(opening.NOWHERE, (), uid_map=uids, gid_map=gids)
    identity(options)  # refuses maps that are none
    return options


def _time(text: str | None) -> int | None:
    """Nanoseconds since 1970."""
    if text is None:
        return None
    if re.fullmatch(r"@?[0-9]{1,11}", text, re.ASCII):
        return int(text.removeprefix("@")) * 10**9
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"--mtime {text}: expected seconds since 1970, or a date as 2026-01-31T12:00:00Z") from None
    return int(when.replace(tzinfo=when.tzinfo or datetime.UTC).timestamp()) * 10**9


def _write_layer(asked: Arguments, path: str, style: export.Style, options: Options) -> dict[str, object]:
    lowers = said.lowers_of(asked.lower)
    with ExitStack() as stack:
        view = stack.enter_context(opening.readable(asked.operands[0], lowers, asked.work, options))
        said.tell_notes(view)
        done = stack.enter_context(Progress("export"))
        _complete(view, done)
        write = stack.enter_context(output.written(path))
        blob = Blob(Compression.of_name(path), write)
        _tell(export.export(view, blob.write, style, done))
        blob.finish()
    return {"digest": blob.outside.digest, "diff_id": blob.inside.digest, "size": blob.outside.size}


def _complete(view: opening.View, done: Callable[[int], None]) -> None:
    """Let the archive have every name under which a mount shows a changed file."""
    complete_links(view.union, done)


def _write_image(asked: Arguments, path: str, style: export.Style, options: Options) -> dict[str, object]:
    (upper,) = asked.operands
    lowers = said.lowers_of(asked.lower)
    name = asked.name or f"{re.sub('[^a-z0-9._-]+', '-', os.path.basename(os.path.realpath(upper)).lower())}:latest"
    with ExitStack() as stack:
        write = stack.enter_context(output.written(path))
        beside = None if path == STDOUT else os.path.dirname(os.path.realpath(path))
        done = stack.enter_context(Progress("export"))
        layers = []
        # Lowest first, as a manifest has them.
        for index in range(len(lowers) - 1, -1, -1):
            with (
                said.reading(lowers[index], lowers[index + 1 :], into=path),
                opening.opened_directories(lowers[index:]) as fds,
                opening.shared(fds[0], fds[1:], options) as view,
            ):
                layers.append(_blob(stack, view, beside, style, done))
        with opening.readable(upper, lowers, asked.work, options) as view:
            said.tell_notes(view)
            _complete(view, done)
            layers.append(_blob(stack, view, beside, style, done))
        digest = image.write_image(write, layers, name, style.mtime_ns or 0)
    return {
        "digest": digest,
        "name": name,
        "layers": [{"digest": layer.digest, "diff_id": layer.diff_id, "size": layer.size} for layer in layers],
    }


def _blob(
    stack: ExitStack, view: opening.View, beside: str | None, style: export.Style, done: Callable[[int], None]
) -> image.LayerBlob:
    file = cast(BinaryIO, tempfile.TemporaryFile(dir=beside))  # noqa: SIM115 - the stack closes it
    stack.callback(file.close)
    blob = Blob(Compression.GZIP, file.write)
    _tell(export.export(view, blob.write, style, done))
    blob.finish()
    return image.LayerBlob(file, blob.outside.digest, blob.outside.size, blob.inside.digest)


def _tell(exported: export.Exported) -> None:
    for line in exported.left_out:
        log.tell(f"warning: {line}")


def _say(facts: dict[str, object], path: str, *, as_json: bool, to_stderr: bool) -> None:
    stream = sys.stderr if to_stderr else sys.stdout
    if as_json:
        print(json.dumps(facts, indent=2), file=stream)
        return
    for label, key in (("name", "name"), ("digest", "digest"), ("diff-id", "diff_id")):
        if key in facts:
            print(f"{label + ':':<9}{facts[key]}", file=stream)
    if "size" in facts:
        size = facts["size"]
        assert isinstance(size, int)
        print(f"size:    {said.size_of(size)}", file=stream)
