"""What `fuseunion doctor` finds out: each point with an answer and, for every "no", a remedy."""

from __future__ import annotations

import os
from typing import NamedTuple

from fuseunion.doctor import machine, trials
from fuseunion.doctor.layers import layers
from fuseunion.engines import registry
from fuseunion.engines.engine import Engine
from fuseunion.engines.finding import Finding, refused
from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting.options import EngineChoice, Options


class EngineReport(NamedTuple):
    """One engine.

    Attributes:
        works: it made a mount that could be written, and honours the options.
        why_not: empty when it works.
        remedy: empty when it works.
        losses: what the user does without.
    """

    choice: EngineChoice
    works: bool
    why_not: str
    remedy: str
    losses: tuple[str, ...]


class Diagnosis(NamedTuple):
    """Everything that was found.

    Attributes:
        chosen: the engine that would be taken; None where none works, or the mount would be refused.
        code: what the mount would end with; OK where it would be made.
    """

    findings: list[Finding]
    engines: list[EngineReport]
    chosen: EngineChoice | None
    code: ExitCode


def examine(options: Options | None) -> Diagnosis:
    """Look at the machine, and at the layers of a mount if there is one in question. Changes nothing.

    Args:
        options: of that mount.
    """
    engines = list(registry.every())
    findings = [machine.kernel()]
    for engine in engines:
        findings += engine.needs()
    findings += [machine.namespaces(), *machine.subordinate_ids()]
    code = ExitCode.OK
    if options is not None:
        refusal = trials.mount(options)
        code = refusal.exit_code if refusal else ExitCode.OK
        findings += [*layers(options, try_upper=refusal is None), _of_mount(refusal)]
    # Not beside an upper that is refused: it may lie in a lower, which nobody writes to.
    place = _beside(options) if code is ExitCode.OK else None
    reports = [_try(engine, options, place) for engine in engines]
    if code is not ExitCode.OK:
        return Diagnosis(findings, reports, None, code)
    order = registry.order(options.engine if options is not None else EngineChoice.AUTO)
    working = {report.choice for report in reports if report.works}
    chosen = next((choice for choice in order if choice in working), None)
    return Diagnosis(findings, reports, chosen, ExitCode.OK if chosen is not None else ExitCode.UNAVAILABLE)


def _of_mount(refusal: UserError | None) -> Finding:
    if refusal is None:
        return Finding("this mount", True, "nothing is in its way")
    return refused("this mount", refusal.message, "correct the command line")


def _try(engine: Engine, options: Options | None, place: str | None) -> EngineReport:
    """Whether an engine honours the options, and if so, whether it works."""
    reasons = engine.refusals(options) if options is not None else []
    if reasons:
        remedy = "leave that option out, or take another engine"
        return EngineReport(engine.choice, False, ", ".join(reasons), remedy, engine.losses)
    outcome = trials.engine(engine.choice, place)
    if outcome.worked:
        return EngineReport(engine.choice, True, "", "", engine.losses)
    found = refused(engine.choice.value, outcome.said, "see the points above, or take another engine")
    return EngineReport(engine.choice, False, found.says, found.remedy, engine.losses)


def _beside(options: Options | None) -> str | None:
    """A directory on the upper's filesystem that can be written, or None for the usual temporary directory."""
    if options is None or options.upper is None:
        return None
    parent = os.path.dirname(os.path.realpath(options.upper))
    return parent if os.access(parent, os.W_OK | os.X_OK) else None
