"""The command line of the benchmark: what to play where, and what becomes of the results (see `bench`)."""

from __future__ import annotations

import argparse
import compileall
import datetime
import json
import os
import signal
import sys
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import bench.rows  # noqa: F401 - enters the rows
from bench import machine
from bench.contestants import KNOWN, OURS, PROJECT, peer
from bench.place import Condition, Medium, Player, Specification, compiled_loops, play
from bench.report import document
from bench.report.chart import chart
from bench.report.results import FORMAT, load, read
from bench.report.table import tables
from bench.row import ROWS, NotRun, Scale
from tests.support.user import ordinary_user

TIMEOUTS = {Scale.TINY: 60.0, Scale.SMALL: 120.0, Scale.FULL: 3600.0}
"""Seconds for one measured process."""

Choice = TypeVar("Choice", bound=Enum)


def _choices(kind: type[Choice]) -> Any:
    """An argument type: members of an enumeration, separated by commas."""

    def parse(text: str) -> list[Choice]:
        return [kind(word) for word in text.split(",")]

    parse.__name__ = kind.__name__.lower()
    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="fuseunion beside its rivals, in one run")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="default: all (see --list)")
    parser.add_argument("--list", action="store_true", help="print the rows and what they do")
    scale = "small: minutes, the default; full: the real sizes, all media, players and conditions"
    parser.add_argument("--scale", type=Scale, default=Scale.SMALL, help=scale)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--medium", type=_choices(Medium), help="tmpfs, disk (default with small: tmpfs)")
    parser.add_argument("--player", type=_choices(Player), help="root, user (default with small: who runs it)")
    parser.add_argument("--idle", action="store_true", help="with nothing else on the machine (default with small)")
    parser.add_argument("--busy", action="store_true", help="with a process that keeps one core busy")
    parser.add_argument("--contestants", help="names, separated by commas (default: all)")
    peer_help = "one more; {lower} {upper} {work} {merged} are filled in"
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help=peer_help)
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a directory on the disk to be measured")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: build/bench/DATE.json")
    limit = "fail when the fastest mount takes so much longer than the fastest of an empty pyfuse3 filesystem"
    parser.add_argument("--start-limit", type=float, metavar="MILLISECONDS", help=limit)
    limit = "the same for `exec` and unshare, fuse-overlayfs and chroot"
    parser.add_argument("--exec-limit", type=float, metavar="MILLISECONDS", help=limit)
    parser.add_argument("--report", type=Path, metavar="FILE", help="write docs/performance.md from a run, and end")
    return parser


def _conditions(arguments: argparse.Namespace) -> list[Condition]:
    chosen = [condition for condition in Condition if getattr(arguments, condition.value)]
    if chosen:
        return chosen
    return list(Condition) if arguments.scale is Scale.FULL else [Condition.IDLE]


def _players(arguments: argparse.Namespace) -> list[Player]:
    if arguments.player:
        return list(arguments.player)
    if arguments.scale is Scale.FULL:
        return list(Player)
    return [Player.ROOT if os.geteuid() == 0 else Player.USER]


def _contestants(arguments: argparse.Namespace) -> list[str]:
    names = [contestant.name for contestant in (*KNOWN, *map(peer, arguments.peer))]
    if arguments.contestants is None:
        return names
    chosen = str(arguments.contestants).split(",")
    if unknown := set(chosen) - set(names):
        raise ValueError(f"unknown contestants: {', '.join(sorted(unknown))}")
    return chosen


def main() -> int:
    """Play, write, judge.

    Returns:
        0; 1 when fuseunion failed, was wrong, or was over a limit; 2 when the arguments make no sense.
    """
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.list:
        for row in ROWS.values():
            sizes = row.sizes[arguments.scale]
            print(f"{row.name:18} {row.says.format(size=sizes[-1])}")
        return 0
    if arguments.report:
        document.write(load(arguments.report))
        return 0
    if unknown := set(arguments.rows) - ROWS.keys():
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}; see --list")
    try:
        contestants = _contestants(arguments)
    except ValueError as error:
        parser.error(str(error))
    # So that everything that was started ends with us, as with an interrupt.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    raw = _run(arguments, contestants)
    results = read(raw)
    text = tables(results)
    arguments.json.with_suffix(".md").write_text(text + "\n")
    arguments.json.with_suffix(".svg").write_text(chart(results))
    print(text)
    print(f"\n{arguments.json}: all samples; beside it the table and the chart")
    limits = (("mount", "mount", "empty", arguments.start_limit), ("exec", "", "fuse-overlayfs", arguments.exec_limit))
    return max(_status(raw), *(_within(raw, *limit) for limit in limits if limit[-1] is not None), 0)


def _run(arguments: argparse.Namespace, contestants: list[str]) -> dict[str, Any]:
    """Play everything; the JSON is written after every row, so that an end half-way leaves what there is."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if arguments.json is None:
        arguments.json = PROJECT / "build/bench" / f"{now[:19].replace(':', '-')}.json"
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    raw: dict[str, Any] = {
        "format": FORMAT,
        "date": now,
        "scale": arguments.scale.value,
        "rounds": arguments.rounds,
        "machine": machine.facts(),
        "versions": machine.versions(),
        "peers": arguments.peer,
        "results": [],
        "failed": [],
        "not_run": [],
    }
    # As an installed program is; else PYTHONDONTWRITEBYTECODE would have us compile at each start.
    compileall.compile_dir(PROJECT / "fuseunion", quiet=2)
    user = ordinary_user().name if os.geteuid() == 0 else None
    media = arguments.medium or (list(Medium) if arguments.scale is Scale.FULL else [Medium.TMPFS])
    with compiled_loops() as loops:
        wanted = Specification(
            rows=[name for name in ROWS if name in arguments.rows or not arguments.rows],
            scale=arguments.scale.value,
            rounds=arguments.rounds,
            conditions=[condition.value for condition in _conditions(arguments)],
            contestants=contestants,
            peers=arguments.peer,
            medium="",
            player="",
            directory="",
            path="",
            loops=str(loops),
            timeout=TIMEOUTS[arguments.scale],
        )
        for medium in media:
            for player in _players(arguments):
                print(f"-- {medium.value}, {player.value}", file=sys.stderr)
                try:
                    for record in play(wanted, medium, player, arguments.disk, user):
                        kind = "results" if "contestants" in record else "failed" if "trouble" in record else "not_run"
                        raw[kind].append(record)
                        arguments.json.write_text(json.dumps(raw, indent=1))
                except NotRun as error:
                    raw["not_run"].append({"medium": medium.value, "player": player.value, "why": str(error)})
    arguments.json.write_text(json.dumps(raw, indent=1))
    return raw


def _status(raw: dict[str, Any]) -> int:
    ours = [record for record in raw["failed"] if record["contestant"] in OURS]
    wrong = [
        name
        for result in raw["results"]
        for name, record in result["contestants"].items()
        if name in OURS and record["trouble"]
    ]
    return 1 if ours or wrong else 0


def _within(raw: dict[str, Any], row: str, part: str, other: str, limit: float) -> int:
    """Compare the fastest samples of a part of a row, which other work disturbs least; 1 where ours are over."""
    for result in raw["results"]:
        names = result["contestants"]
        if (result["row"], result["part"]) == (row, part) and {"fuse", other} <= names.keys():
            ours, theirs = (min(names[name]["samples"]) * 1000 for name in ("fuse", other))
            within = ours - theirs <= limit
            what = f"fuseunion {ours:.1f} ms, {other} {theirs:.1f} ms"
            print(f"{row}: {what}: {'within' if within else 'OVER'} the limit of {limit:g} ms")
            return 0 if within else 1
    print(f"{row}: not measured, so nothing is said about the limit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
