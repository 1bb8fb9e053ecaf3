"""fuseunion check: what is wrong with an upper that is not mounted, and putting it right."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from enum import IntEnum

from fuseunion.cli.commands.layers import said
from fuseunion.cli.parser import CommandParser
from fuseunion.errors import ExitCode, UserError, one_line
from fuseunion.offline.upkeep.checking import check
from fuseunion.offline.upkeep.checking.check import Outcome
from fuseunion.offline.upkeep.checking.findings import Severity
from fuseunion.offline.upkeep.checking.journal import RepairJournal
from fuseunion.offline.upkeep.holding import HeldUpper, hold

HELP = """\
Usage: fuseunion check UPPER [--lower LOWER[:LOWER...]] [--work DIR] [--repair] [--json]

Looks for everything that can be wrong with the upper directory UPPER, which must not be mounted: errors, leftovers that
only take space, and notes. With the lower directories it finds more: whiteouts of nothing, redirects that lead nowhere,
data that is missing, copies that no name shows.

Exits with 0 when there are neither errors nor leftovers, 10 when all were repaired, 11 when some are left.

Options:
  --lower LOWER[:LOWER...]  the lower directories, topmost first; repeatable
  --work DIR                the work directory of UPPER, when that is not the default one
  --repair                  put right what can be without the loss of anybody's data. What is taken away is written
                            down first, in .UPPER.fuseunion-repairs/journal beside UPPER. When it is cut off, give the
                            same command again
  --json                    for programs
  -h, --help                print this help

Examples:
  fuseunion check upper
  fuseunion check upper --lower base --repair
"""


class CheckCode(IntEnum):
    """The exit status (docs/exit-codes.md), apart from that of errors."""

    CLEAN = 0
    REPAIRED = 10
    LEFT = 11


def main(arguments: list[str]) -> int:
    """Check one upper.

    Returns:
        A CheckCode.
    Raises:
        UserError: USAGE; BUSY where it is mounted; LAYERS where a layer cannot be opened; FAILURE where one cannot be
            read.
    """
    parser = CommandParser("check", HELP)
    for name in ("--repair", "--json"):
        parser.flag(name)
    parser.values("--lower")
    parser.value("--work")
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) != 1:
        raise UserError("give one directory; see fuseunion check --help")
    (upper,) = asked.operands
    lowers = said.lowers_of(asked.lower)
    with said.to_a_pipe(), ExitStack() as stack, said.reading(upper):
        held = hold(stack, upper, asked.work)
        journal = RepairJournal(held)
        stack.callback(journal.close)
        outcomes = (check.repair if asked.repair else check.look)(held, lowers, journal)
        kept = journal.path if journal.objection() is None and journal.exists() else None
        if asked.json:
            print(json.dumps(_as_json(held, outcomes) | {"journal": kept}, indent=2, ensure_ascii=True))
        else:
            _print(held, outcomes)
            if kept is not None:
                print(one_line(f"what repairs took away is written down in '{kept}'"))
    return _code(outcomes)


def _code(outcomes: list[Outcome]) -> CheckCode:
    counted = [outcome for outcome in outcomes if outcome.finding.severity is not Severity.NOTE]
    if not all(outcome.repaired for outcome in counted):
        return CheckCode.LEFT
    return CheckCode.REPAIRED if counted else CheckCode.CLEAN


def _place(held: HeldUpper, outcome: Outcome) -> str:
    return os.path.join(
        held.work_path if outcome.finding.in_work else held.path, os.fsdecode(outcome.finding.path)
    ).rstrip("/")


def _print(held: HeldUpper, outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        end = ": repaired" if outcome.repaired else ""
        if outcome.why_not is not None:
            end = f": cannot be repaired ({outcome.why_not.strerror})"
        finding = outcome.finding
        print(one_line(f"{finding.severity.value}: '{_place(held, outcome)}' {finding.text}{end}"))
    counts = [(kind, sum(each.finding.severity is kind for each in outcomes)) for kind in Severity]
    told = ", ".join(f"{count} {kind.value}{'s' if count != 1 else ''}" for kind, count in counts if count)
    repaired = sum(outcome.repaired for outcome in outcomes)
    print(one_line(f"'{held.path}': {told or 'clean'}" + (f"; {repaired} repaired" if repaired else "")))


def _as_json(held: HeldUpper, outcomes: list[Outcome]) -> dict[str, object]:
    return {
        "upper": held.path,
        "findings": [
            {
                "code": outcome.finding.code,
                "severity": outcome.finding.severity.value,
                "path": _place(held, outcome),
                "message": outcome.finding.text,
                "repairable": outcome.finding.repair is not None,
                "repaired": outcome.repaired,
            }
            for outcome in outcomes
        ],
    }
