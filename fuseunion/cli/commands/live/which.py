"""`fuseunion which MERGED PATH...`: where the files of a mount come from."""

from __future__ import annotations

import json
import os
import stat
import time

from fuseunion.cli.commands.live import log
from fuseunion.cli.commands.live.inside import path_in
from fuseunion.cli.commands.live.reaching import reach
from fuseunion.cli.commands.live.words import seconds, size, write_line
from fuseunion.cli.parser import CommandParser
from fuseunion.errors import ExitCode, UserError, one_line
from fuseunion.linux.runtime import frames
from fuseunion.linux.runtime.conversation import RefusedError
from fuseunion.linux.runtime.frames import Record

HELP = """\
Usage: fuseunion which [--json] MERGED PATH...

Says of each path in a mount which layer shows it and where it lies there, what it hides in the layers below, and
whether it was copied up: when, and for which program, if that was not long ago (fuseunion log). Mounts through FUSE
only.

A PATH that leads into MERGED is that path; any other is one from the root of the mount.

Exits with 1 when one of them is not there.

Options:
  --json       the same for programs
  -h, --help   print this help

Examples:
  fuseunion which ~/merged ~/merged/etc/passwd
  fuseunion which ~/merged etc/passwd /usr/bin/env
"""

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def main(arguments: list[str]) -> int:
    """Say where files come from.

    Returns:
        FAILURE when one of them is not there, else OK.
    Raises:
        UserError: USAGE; LAYERS when nothing of ours is at MERGED, or a path leads out of it; UNAVAILABLE where nobody
            can be asked.
    """
    parser = CommandParser("which", HELP)
    parser.flag("--json")
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) < 2:
        raise UserError("give a mounted directory and paths in it: fuseunion which MERGED PATH...")
    status, conversation = reach(asked.operands[0])
    missing, objects = False, []
    with conversation:
        for given in asked.operands[1:]:
            try:
                answer = conversation.ask("which", path=path_in(status, given))
            except RefusedError as refusal:
                raise UserError(f"'{given}': {refusal.message}", ExitCode.FAILURE) from None
            missing |= frames.first(answer[0], "kind", "0") == "0"
            if asked.json:
                objects.append(_as_object(answer))
            else:
                _print(answer)
    if asked.json:
        write_line(json.dumps({"paths": objects}, indent=2))
    return ExitCode.FAILURE if missing else ExitCode.OK


def _parts(answer: list[Record]) -> list[Record]:
    return [record for record in answer[1:] if "role" in record]


def _copy_up(answer: list[Record]) -> Record | None:
    return next((record for record in answer[1:] if "number" in record), None)


def _kind(record: Record) -> str:
    return _KINDS.get(int(frames.first(record, "kind", "0")), "")


def _location(part: Record) -> str | None:
    path = frames.first(part, "path", "/") if "path" in part else None
    return None if path is None else os.path.join(frames.first(part, "layer"), path).rstrip("/")


def _as_object(answer: list[Record]) -> dict[str, object]:
    about, copy_up = answer[0], _copy_up(answer)
    return {
        "path": frames.first(about, "path"),
        "kind": _kind(about) or None,
        "error": os.strerror(int(frames.first(about, "error"))) if "error" in about else None,
        "copied_up": frames.first(about, "copied_up") == "1",
        "parts": [
            {
                "role": frames.first(part, "role"),
                "upper": frames.first(part, "upper") == "1",
                "layer": frames.first(part, "layer"),
                "path": frames.first(part, "path") if "path" in part else None,
                "kind": _kind(part) or None,
            }
            for part in _parts(answer)
        ],
        "log": None if copy_up is None else log.as_object(copy_up),
    }


def _print(answer: list[Record]) -> None:
    about, parts, copy_up = answer[0], _parts(answer), _copy_up(answer)
    write_line(f"{one_line(frames.first(about, 'path') or '.')}: {_summary(about, parts)}")
    for part in parts:
        layer = "upper" if frames.first(part, "upper") == "1" else "lower"
        where = _location(part)
        write_line(
            f"    {frames.first(part, 'role'):<9} {layer}  {one_line(where) if where else 'in the work directory'}"
        )
    if copy_up is not None:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(frames.first(copy_up, "when"))))
        how_much = size(int(frames.first(copy_up, "size")))
        how_long = seconds(float(frames.first(copy_up, "seconds")))
        write_line(f"    copied    {when}, {how_much} in {how_long}, {log.cause(copy_up)}")


def _summary(about: Record, parts: list[Record]) -> str:
    if "error" in about:
        return os.strerror(int(frames.first(about, "error")))
    if frames.first(about, "kind") == "0":
        return "not there, hidden by a whiteout" if parts else "not there"
    if not parts:
        return f"{_kind(about)} without a name in a layer"
    in_upper = frames.first(parts[0], "upper") == "1"
    copied = frames.first(about, "copied_up") == "1"
    return f"{_kind(about)} of {'the upper' if in_upper else 'a lower'}{', copied up' if copied else ''}"
