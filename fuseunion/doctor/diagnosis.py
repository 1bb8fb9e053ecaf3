"""What `fuseunion doctor` finds out: each point with an answer and, for every "no", a remedy."""

from __future__ import annotations

import os
from typing import NamedTuple

from fuseunion.doctor import machine, trials
from fuseunion.doctor.layers import layers
from fuseunion.engines import registry
from fuseunion.engines.finding import Finding
from fuseunion.mounting.options import EngineChoice, Options


class EngineReport(NamedTuple):
    """One engine.

    Attributes:
        works: it made a mount that could be written, and honours the options.
        why_not: empty when it works.
        losses: what the user does without.
    """

    choice: EngineChoice
    works: bool
    why_not: str
    losses: tuple[str, ...]


class Diagnosis(NamedTuple):
    """Everything that was found.

    Attributes:
        chosen: the engine that would be taken; None where none works.
    """

    findings: list[Finding]
    engines: list[EngineReport]
    chosen: EngineChoice | None


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
    if options is not None:
        findings += layers(options)
    place = _beside(options)
    reports = []
    for engine in engines:
        refused = engine.refusals(options) if options is not None else []
        outcome = trials.Outcome(False, ", ".join(refused)) if refused else trials.engine(engine.choice, place)
        reports.append(EngineReport(engine.choice, outcome.worked, outcome.said, engine.losses))
    order = registry.order(options.engine if options is not None else EngineChoice.AUTO)
    working = {report.choice for report in reports if report.works}
    return Diagnosis(findings, reports, next((choice for choice in order if choice in working), None))


def _beside(options: Options | None) -> str | None:
    """A directory on the upper's filesystem that can be written, or None for the usual temporary directory."""
    if options is None or options.upper is None:
        return None
    parent = os.path.dirname(os.path.realpath(options.upper))
    return parent if os.access(parent, os.W_OK | os.X_OK) else None
