"""`fuseunion doctor`: what works here, which engine would be taken, and what helps where something does not work."""

from __future__ import annotations

import json
import os
import sys

from fuseunion.cli.arguments import parse
from fuseunion.cli.parser import CommandParser
from fuseunion.cli.progress import Progress
from fuseunion.doctor import diagnosis
from fuseunion.doctor.diagnosis import Diagnosis
from fuseunion.engines import registry
from fuseunion.engines.finding import Finding
from fuseunion.errors import ExitCode, UserError, one_line

HELP = """\
Usage: fuseunion doctor [--json] [LOWER[:LOWER...] UPPER MERGED [options of the mount]]
       fuseunion doctor --repair UPPER | MERGED

Tries what this machine, this user and these directories can do, and says which engine would be taken, what would be
lost with each, and what helps where something does not work. Changes nothing: what has to be tried for real is tried
in a new directory, which is removed again. The exit status is that of the mount: 0 where it would be made.

Options:
  --json       the same for programs
  --repair     finish what a killed command, or a machine that went down, left of a ranch (a tree of links): what was
               changed in it is brought into UPPER
  -h, --help   print this help

Examples:
  fuseunion doctor
  fuseunion doctor /srv/base ~/changes ~/merged
  fuseunion doctor --repair ~/changes
"""


def main(arguments: list[str]) -> int:
    """Report, or repair.

    Returns:
        What the mount in question would end with, as far as that can be known; without one UNAVAILABLE when no engine
        would do, else OK.
    Raises:
        UserError: USAGE; LAYERS when there is nothing to repair.
    """
    parser = CommandParser("doctor", HELP)
    parser.flag("--json")
    parser.flag("--repair")
    known = parser.parse_known(arguments)
    if known is None:
        return ExitCode.OK
    asked, rest = known
    if asked.repair:
        operands = parser.operands(rest)
        if len(operands) not in (1, 3):
            raise UserError("give the UPPER or the MERGED of a ranch: fuseunion doctor --repair UPPER")
        _repair(operands[0] if len(operands) == 1 else operands[1])
        return ExitCode.OK
    found = diagnosis.examine(parse(rest) if rest else None)
    if asked.json:
        json.dump(_as_json(found), sys.stdout, indent=2)
        print()
    else:
        _print(found)
    return found.code


def _as_json(found: Diagnosis) -> dict[str, object]:
    return {
        "findings": [finding._asdict() for finding in found.findings],
        "engines": {
            report.choice.value: {
                "works": report.works,
                "why_not": report.why_not,
                "remedy": report.remedy,
                "losses": list(report.losses),
            }
            for report in found.engines
        },
        "chosen": found.chosen.value if found.chosen is not None else None,
    }


def _print(found: Diagnosis) -> None:
    for finding in found.findings:
        _line(finding)
    print()
    for report in found.engines:
        says = "works" if report.works else report.why_not
        _line(Finding(f"{report.choice.value} engine", report.works, says, report.remedy))
        for loss in report.losses:
            print(f"         {loss}")
    print()
    print(f"would be taken: {found.chosen.value if found.chosen is not None else 'none'}")


def _line(finding: Finding) -> None:
    mark = {True: "yes", False: "no", None: "-"}[finding.ok]
    print(one_line(f"{mark:>4}  {finding.name}: {finding.says}"))
    if finding.remedy:
        print(one_line(f"         remedy: {finding.remedy}"))


def _repair(given: str) -> None:
    path = os.path.realpath(given)
    for engine in registry.every():
        said = engine.repair(given, path, Progress)
        if said is not None:
            print(said)
            return
    raise UserError(f"'{given}' has no ranch; there is nothing to repair", ExitCode.LAYERS)
