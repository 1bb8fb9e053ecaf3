"""`fuseunion log MERGED`: every copy-up, and for whom it was made."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator

from fuseunion.cli.commands.live.reaching import reach
from fuseunion.cli.commands.live.words import seconds, size, write_line
from fuseunion.cli.parser import CommandParser
from fuseunion.errors import ExitCode, UserError, one_line
from fuseunion.linux.runtime import frames
from fuseunion.linux.runtime.conversation import PATIENCE, Conversation, RefusedError
from fuseunion.linux.runtime.frames import Record

HELP = """\
Usage: fuseunion log [--follow] [--json] MERGED

Says which files of a mount were copied up: when, how much, how long it took, by which request, and of which program.
The last thousand are kept. Mounts through FUSE only.

Options:
  -f, --follow  go on with those that come, until the mount ends
  --json        the same for programs: an object on each line
  -h, --help    print this help

Examples:
  fuseunion log ~/merged
  fuseunion log --follow ~/merged
"""


def main(arguments: list[str]) -> int:
    """Print the log.

    Raises:
        UserError: USAGE; LAYERS when nothing of ours is at MERGED; UNAVAILABLE where nobody can be asked.
    """
    parser = CommandParser("log", HELP)
    parser.flag("-f", "--follow")
    parser.flag("--json")
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) != 1:
        raise UserError("give one mounted directory: fuseunion log MERGED")
    _, conversation = reach(asked.operands[0])
    with conversation:
        try:
            conversation.send("log", since=0, **({"follow": 1} if asked.follow else {}))
            for record in _records(conversation, follows=asked.follow):
                _print(record, as_json=asked.json)
        except RefusedError as refusal:
            raise UserError(refusal.message, ExitCode.FAILURE) from None
        except BrokenPipeError:
            # Who reads has seen enough (`| head`). What Python still has to write goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.OK


def _records(conversation: Conversation, *, follows: bool) -> Iterator[Record]:
    while (records := conversation.receive(None if follows else PATIENCE)) is not None:
        yield from records
        if not follows:
            return


def _print(record: Record, *, as_json: bool) -> None:
    if "missed" in record:
        missed = int(frames.first(record, "missed"))
        if missed and as_json:
            write_line(json.dumps({"missed": missed}))
        elif missed:
            write_line(f"({missed} more, which are kept no longer)")
    elif as_json:
        write_line(json.dumps(as_object(record)))
    else:
        write_line(line(record))


def as_object(record: Record) -> dict[str, object]:
    """A copy-up for programs."""
    said = {name: frames.first(record, name) for name in record}
    numbers = {name: int(said.pop(name)) for name in ("number", "size", "pid")}
    return {**numbers, "when": float(said.pop("when")), "seconds": float(said.pop("seconds")), **said}


def line(record: Record) -> str:
    """A copy-up for people."""
    when = time.strftime("%H:%M:%S", time.localtime(float(frames.first(record, "when"))))
    how_much = size(int(frames.first(record, "size")))
    how_long = seconds(float(frames.first(record, "seconds")))
    return f"{when} {how_much:>10} {how_long:>8}  {path(record)}  {cause(record)}"


def path(record: Record) -> str:
    """What was copied."""
    return one_line(frames.first(record, "path")) or "(removed)"


def cause(record: Record) -> str:
    """For whom."""
    request, pid = frames.first(record, "request", "?"), frames.first(record, "pid")
    name = one_line(frames.first(record, "program"))
    if not name:
        return (
            f"{request} by a process that is not known" if pid == "0" else f"{request} by process {pid}, which has gone"
        )
    return f"{request} by {name} ({pid})"
